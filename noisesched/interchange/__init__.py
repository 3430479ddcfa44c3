"""PyTorch's diffusers: its schedulers, its networks, and their files."""
