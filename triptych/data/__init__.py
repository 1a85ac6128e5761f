"""Data sets: readers, splits, what packages bring, and how rows become batches."""
