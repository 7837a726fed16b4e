"""The editor's own component."""
