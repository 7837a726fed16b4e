"""A run of many pictures: plan, batches, shards, resumable storage, and the table that comes out."""
