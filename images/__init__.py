"""Pixels of image and mask files: decoding, class ids, resizing, encoding.

Both jobs and the training read files through it; it imports ``schemas`` alone.
"""
