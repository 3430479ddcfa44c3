"""The training loop, its step, and what is told of them."""
