"""What a trained network knows, and what its samples look like."""
