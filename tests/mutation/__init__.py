"""Mutation runs: does a test notice when a line is changed? ``python -m tests.mutation --help``."""
