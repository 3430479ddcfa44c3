"""Networks: from their parts to a denoiser, and from a denoiser to images."""
