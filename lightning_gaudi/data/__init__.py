"""Data in few, fixed shapes: buckets, batches grouped by them, and text from files."""
