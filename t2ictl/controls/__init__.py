"""What the author of a control needs."""
