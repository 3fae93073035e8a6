"""Files to pairs, pairs to splits, texts to token ids, token ids to packed batches."""
