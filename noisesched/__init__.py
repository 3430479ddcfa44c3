"""noisesched: diffusion networks told the log-SNR, sampled under any noise schedule."""

__version__ = "0.1.0"
