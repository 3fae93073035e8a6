"""Where the sequences of a packed batch begin and end, and how the CPU kernel groups them.

Shapes: `B` sequences, `T` packed tokens.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from embedtune.kernels.transfer import to_device


class Visibility(NamedTuple):
    """Which keys of its sequence a query sees; all, if neither is given."""

    causal: bool
    """None that come after it."""
    window: int | None
    """None so many tokens away, or further."""


@dataclass(frozen=True)
class Group:
    """Consecutive sequences of the same length, computed together as one block."""

    start: int
    """First packed token of the group."""
    count: int
    """Number of sequences."""
    length: int
    """Tokens of each."""

    @property
    def stop(self) -> int:
        """One past the last packed token of the group."""
        return self.start + self.count * self.length


@dataclass(frozen=True)
class PackedLayout:
    """How `B` sequences lie one after another in `T` packed tokens."""

    lengths: tuple[int, ...]
    """Tokens of each sequence."""
    cu_seqlens: Tensor
    """Cumulative lengths, int32, shape (B + 1,)."""
    max_length: int
    """Tokens of the longest sequence."""

    @property
    def device(self) -> torch.device:
        return self.cu_seqlens.device

    @cached_property
    def kept(self) -> dict[Any, Any]:
        """What kernels worked out from this layout, for the next layer to find."""
        return {}

    @cached_property
    def typical_length(self) -> int:
        """Tokens of the sequence that half of all tokens are in, or in shorter ones."""
        lengths_B = np.sort(self.lengths)
        tokens_B = np.cumsum(lengths_B)
        return int(lengths_B[np.searchsorted(2 * tokens_B, tokens_B[-1])])

    @cached_property
    def groups(self) -> tuple[Group, ...]:
        """The sequences in runs of the same length, in packed order."""
        groups, start = [], 0
        for length, run in itertools.groupby(self.lengths):
            groups.append(Group(start, len(list(run)), length))
            start = groups[-1].stop
        return tuple(groups)

    @cached_property
    def sequence_of_token_T(self) -> Tensor:
        """Number of the sequence that each token belongs to, int64."""
        lengths_B = np.asarray(self.lengths)
        return to_device(torch.from_numpy(np.repeat(np.arange(len(lengths_B)), lengths_B)), self.device)


def packed_layout(lengths: Sequence[int], device: torch.device | str = "cpu") -> PackedLayout:
    """The layout of sequences with these lengths, in this order.

    In any order, but there are few groups only if equal lengths stand together.

    Args:
        lengths: tokens of each of the B sequences, each at least 1.
        device: where the tensors live.
    """
    if not lengths or min(lengths) < 1:
        raise ValueError(f"lengths must be non-empty and positive, got {list(lengths)[:8]}")
    lengths_B = torch.tensor(lengths, dtype=torch.int32)
    cu_seqlens = torch.zeros(len(lengths) + 1, dtype=torch.int32)
    torch.cumsum(lengths_B, 0, dtype=torch.int32, out=cu_seqlens[1:])
    return PackedLayout(
        lengths=tuple(lengths),
        cu_seqlens=to_device(cu_seqlens, torch.device(device)),
        max_length=max(lengths),
    )
