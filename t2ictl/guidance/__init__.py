"""Objectives, and the optimization loops that lower them."""
