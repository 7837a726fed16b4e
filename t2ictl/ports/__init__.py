"""Ports: what is true of one denoiser class, whatever pipeline it stands in."""
