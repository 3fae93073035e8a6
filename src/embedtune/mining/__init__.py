"""Hard negatives: passages of other training pairs that look like an answer and are none."""
