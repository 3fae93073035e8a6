"""Frozen linear layers with a low-rank adapter."""
