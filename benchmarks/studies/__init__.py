"""Studies: one question each, answered on the embedded model."""
