"""Statistics of paired runs: intervals, tests and power, with prompts as the independent units."""
