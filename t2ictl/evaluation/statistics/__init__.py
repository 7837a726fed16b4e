"""Intervals and tests that hold for few units and for units that are all alike; numpy and scipy only."""
