"""Exact search over embeddings, and the BM25 baseline."""
