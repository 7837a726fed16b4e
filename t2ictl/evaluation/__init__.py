"""Judges of images and statistics of what they find."""
