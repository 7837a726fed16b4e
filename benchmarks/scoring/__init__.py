"""Learned judges over the images of a finished run: metrics with their variant in their name, cached, compared."""
