"""The parts of token-flow analysis: items, conditions, images, quantities, repair, report."""
