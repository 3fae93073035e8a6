"""Retrieval metrics per query, the statistics of a difference, and the evaluation itself."""
