"""Where the sequences of a packed batch begin and end, and how the CPU kernel groups them.

Shapes: `B` sequences, `T` packed tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

MAX_PADDING = 0.15
"""Largest share of padded positions that a group of similar-length sequences may contain."""


@dataclass(frozen=True)
class Group:
    """Consecutive sequences of similar length, computed together as one padded block."""

    start: int
    """First packed token of the group."""
    stop: int
    """One past the last packed token of the group."""
    count: int
    """Number of sequences."""
    length: int
    """Length of the longest sequence."""
    slots: Tensor | None
    """Position of every token in the padded block [count * length], shape (stop - start,); None: no padding."""
    padding: Tensor | None
    """Positions of the padded block that hold no token, bool, shape (count, length); None: no padding."""


@dataclass(frozen=True)
class PackedLayout:
    """How `B` sequences lie one after another in `T` packed tokens. Groups are made on the CPU only."""

    lengths: tuple[int, ...]
    """Tokens of each sequence."""
    cu_seqlens: Tensor
    """Cumulative lengths, int32, shape (B + 1,)."""
    max_length: int
    """Tokens of the longest sequence."""
    groups: tuple[Group, ...]
    """The sequences in blocks of similar length, in packed order."""

    @property
    def device(self) -> torch.device:
        return self.cu_seqlens.device


def packed_layout(lengths: Sequence[int], device: torch.device | str = "cpu") -> PackedLayout:
    """The layout of sequences with these lengths, in this order.

    Groups stay within `MAX_PADDING` whatever the order, but there are few of them only if the lengths ascend.

    Args:
        lengths: tokens of each of the B sequences, each at least 1.
        device: where `cu_seqlens` and the groups' index tensors live.
    """
    if not lengths or min(lengths) < 1:
        raise ValueError(f"lengths must be non-empty and positive, got {list(lengths)[:8]}")
    lengths_B = torch.tensor(lengths, dtype=torch.int32)
    cu_seqlens = torch.zeros(len(lengths) + 1, dtype=torch.int32)
    torch.cumsum(lengths_B, 0, dtype=torch.int32, out=cu_seqlens[1:])
    return PackedLayout(
        lengths=tuple(lengths),
        cu_seqlens=cu_seqlens.to(device, non_blocking=True),
        max_length=max(lengths),
        groups=tuple(_groups(lengths, torch.device(device))),
    )


def _groups(lengths: Sequence[int], device: torch.device) -> list[Group]:
    groups: list[Group] = []
    first = start = 0
    while first < len(lengths):
        last, tokens, longest = first, 0, 0
        while last < len(lengths):
            longest_if_added = max(longest, lengths[last])
            tokens_if_added = tokens + lengths[last]
            if tokens_if_added < (1 - MAX_PADDING) * longest_if_added * (last + 1 - first):
                break
            last, tokens, longest = last + 1, tokens_if_added, longest_if_added
        groups.append(_group(lengths[first:last], start, longest, device))
        first, start = last, start + tokens
    return groups


def _group(lengths: Sequence[int], start: int, longest: int, device: torch.device) -> Group:
    count, tokens = len(lengths), sum(lengths)
    slots = padding = None
    if tokens < count * longest:
        is_token = torch.arange(longest) < torch.tensor(lengths)[:, None]
        slots = is_token.flatten().nonzero().squeeze(1).to(device)
        padding = (~is_token).to(device)
    return Group(start=start, stop=start + tokens, count=count, length=longest, slots=slots, padding=padding)
