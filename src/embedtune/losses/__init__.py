"""Contrastive losses: embeddings and who answers whom in, a scalar out."""
