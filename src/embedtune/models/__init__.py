"""Hugging Face encoders, run packed."""
