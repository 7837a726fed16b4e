"""Attention maps of words: recorded, read, drawn."""
