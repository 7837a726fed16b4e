"""What things cost: ratios of two things in one run, operations, bytes. ``t2ictl bench speed`` prints them."""
