"""Sessions: controls at work on a pipeline, and the pipeline as it was afterwards."""
