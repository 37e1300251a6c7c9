"""Inference engines: OpenVINO and TensorFlow behind one interface.

Each engine imports ``base`` alone, and ``choice`` imports only the engine that was chosen.
"""
