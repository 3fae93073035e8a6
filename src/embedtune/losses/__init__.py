"""Losses: embeddings of a batch and what is known of them in, a scalar out. `batch` has the interface."""
