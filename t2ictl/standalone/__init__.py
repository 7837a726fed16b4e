"""Attention processors that work without a session."""
