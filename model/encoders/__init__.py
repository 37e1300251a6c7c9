"""Encoders with weights from ImageNet: EfficientNet-Lite0 and those of ``keras.applications``.

Each is a network from RGB (batch, height, width, 3), 0 to 255, to features, the finest first, each
half the size of the one before, the last 1/32 of the images' size.
"""
