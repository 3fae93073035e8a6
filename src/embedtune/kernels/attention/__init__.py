"""Attention over packed sequences: every token attends to the tokens of its own sequence only."""

from embedtune.kernels.attention.layout import PackedLayout, packed_layout

__all__ = ["PackedLayout", "packed_layout"]
