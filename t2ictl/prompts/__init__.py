"""Prompts: words, tokens, phrases, and which word belongs to which object."""
