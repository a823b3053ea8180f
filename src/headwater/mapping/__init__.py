"""Changes -> Events: pure functions over record batches."""
