"""The interactive editor."""
