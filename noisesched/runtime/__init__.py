"""Devices, processes, and files on disk."""
