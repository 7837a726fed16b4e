"""Prompts to be tried: of the embedded world, of every day, and published sets."""
