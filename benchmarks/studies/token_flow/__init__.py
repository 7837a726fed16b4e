"""Token-flow analysis on the embedded model: what leaks, what can go, what repairs do, and how well maps point."""
