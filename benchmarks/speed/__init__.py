"""Commands that print what things cost: ratios of two things in one run, operations, bytes."""
