"""Text encoders that are trained apart, on objectives of their own, and then frozen."""
