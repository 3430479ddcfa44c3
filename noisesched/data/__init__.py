"""Images in batches."""
