"""A run of many images: plan, batches, shards, resumable storage, and the table that comes out."""
