"""Pixels of image and mask files: decoding, class ids, resizing, encoding, panels.

Both jobs and the training read files through it; it imports ``schemas`` alone.
"""
