"""PyTorch's diffusers: its schedulers and their files."""
