"""All that a run is on disk."""
