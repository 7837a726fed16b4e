"""The attention processor, its layers, edits and kernels."""
