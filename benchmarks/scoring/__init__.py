"""Learned judges over the pictures of a finished run: metrics with their variant in their name, cached, compared."""
