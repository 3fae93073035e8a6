"""Batches in, a trained adapter and its checkpoints out. Evaluation comes in as a callable."""
