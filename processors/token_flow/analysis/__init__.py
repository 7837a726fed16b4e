"""The parts of token-flow analysis: items, conditions, pictures, quantities, repair, report."""
