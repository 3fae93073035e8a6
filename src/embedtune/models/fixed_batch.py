"""A packed batch whose tensors have a fixed place and size, and take one batch after another: what a CUDA graph reads.

What a batch leaves of the room for tokens is taken by fillers, texts that nothing asks for; what it leaves of the room
for texts by empty ones in front; and what it leaves of the room for tiles by tiles of no tokens.

Shapes: `T` room for tokens, `B` room for texts, `N` room for tiles of one kind.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import accumulate, islice
from operator import le
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch

from embedtune.kernels.attention import tiles
from embedtune.kernels.attention.layout import PackedLayout
from embedtune.kernels.attention.tiles import PlannedTiles, Table, Tiles
from embedtune.kernels.transfer import to_device
from embedtune.models.packing import Arrangement, PackedBatch, TokenIds, arrange

FILLER_LENGTH = 64
"""Tokens of a filler; the last one has what is left."""
STEPS_PER_DOUBLING = 16
"""Sizes of rooms for tokens between a number and its double: a batch leaves 2 % of its room on average."""
SMALLEST_STEP = 64
HEADROOM = 1.25
"""Room for texts and tiles by those of the first batch: others with as many tokens have them in another mix."""
ALIGNMENT = 4
"""Each tensor begins at a multiple of so many int32, where kernels expect the start of a tensor."""


class Room(NamedTuple):
    """What a fixed batch holds at the most."""

    tokens: int
    texts: int
    tiles: tuple[int, ...]
    """Of each kind, table by table."""

    def joined(self, other: Room) -> Room:
        """Room for what either holds."""
        return Room(
            tokens=max(self.tokens, other.tokens),
            texts=max(self.texts, other.texts),
            tiles=tuple(map(max, self.tiles, other.tiles)),
        )


@dataclass(frozen=True)
class Filled:
    """Texts with their fillers, arranged on the host, and cut into tiles."""

    arranged: Arrangement
    tiles: tuple[PlannedTiles, ...]
    """Those of each kind, table by table."""

    @property
    def tokens(self) -> int:
        """Fillers' included."""
        return len(self.arranged.position_ids_T)


def room_for_tokens(tokens: int) -> int:
    """Tokens of the smallest room that holds so many; there are few sizes, so that batches share them."""
    step = max(SMALLEST_STEP, (1 << tokens.bit_length() - 1) // STEPS_PER_DOUBLING)
    return math.ceil(tokens / step) * step


def fill_up(texts: Sequence[TokenIds], tables: Sequence[Table], *, position_offset: int) -> Filled:
    """Arrange texts with as many fillers as it takes to come to a size of `room_for_tokens`.

    Args:
        texts: token ids of each text, none empty.
        tables: by which attention cuts batches into tiles.
        position_offset: as of `packing.arrange`.
    """
    tokens = sum(map(len, texts))
    whole, rest = divmod(room_for_tokens(tokens) - tokens, FILLER_LENGTH)
    lengths = [FILLER_LENGTH] * whole + [rest] * (rest > 0)
    fillers = [np.zeros(length, dtype=np.int32) for length in lengths]
    arranged = arrange([*texts, *fillers], position_offset=position_offset)
    return Filled(arranged, tuple(kind for sizes in tables for kind in tiles.plan(arranged.lengths_B, sizes)))


def room_for(filled: Filled) -> Room:
    """Room for this batch and for most others with as many tokens."""

    def with_headroom(count: int) -> int:
        return math.ceil(max(1, count) * HEADROOM / SMALLEST_STEP) * SMALLEST_STEP

    return Room(
        tokens=filled.tokens,
        texts=with_headroom(len(filled.arranged.lengths_B)),
        tiles=tuple(with_headroom(len(kind.bounds_N4)) for kind in filled.tiles),
    )


class FixedBatch:
    """The tensors. All of them are parts of one, so that taking up a batch is one copy to the device.

    Args:
        room: what it holds at the most.
        filled: the first batch.
        tables: by which attention cuts batches into tiles.
        device: where the tensors live.
    """

    def __init__(self, room: Room, filled: Filled, tables: Sequence[Table], device: torch.device) -> None:
        self.room, self._device = room, device
        sizes = (room.tokens, room.tokens, room.tokens, room.texts + 1, room.texts, *(4 * n for n in room.tiles))
        ends = list(accumulate(math.ceil(size / ALIGNMENT) * ALIGNMENT for size in sizes))
        self._starts = [0, *ends[:-1]]
        self._ints = torch.zeros(ends[-1], dtype=torch.int32, device=device)
        ids_T, positions_T, sequence_T, cu_seqlens, restore_B, *bounds = (
            self._ints[start : start + size] for start, size in zip(self._starts, sizes, strict=True)
        )
        lengths = tuple(filled.arranged.lengths_B.tolist())
        layout = PackedLayout(lengths=lengths, cu_seqlens=cu_seqlens, max_length=max(lengths))
        layout.__dict__["sequence_of_token_T"] = sequence_T  # which it would otherwise work out from the lengths
        kinds = iter([Tiles(*kind[:3], x.view(-1, 4)) for kind, x in zip(filled.tiles, bounds, strict=True)])
        for table in tables:
            tiles.keep(layout, table, list(islice(kinds, len(table.whole) + 1)))
        self._packed = PackedBatch(ids_T[None], positions_T[None], layout, restore_B)
        self.put(filled)

    def packed(self) -> PackedBatch:
        """What the encoder is given: as many texts as there is room for, first those of the batch in the order given.

        To be called in the graph, since models take nothing but int64.
        """
        ids_1T, positions_1T = self._packed.input_ids_1T.long(), self._packed.position_ids_1T.long()
        return replace(self._packed, input_ids_1T=ids_1T, position_ids_1T=positions_1T)

    def holds(self, filled: Filled) -> bool:
        """Whether there is room for it."""
        needed = [len(filled.arranged.lengths_B), *(len(kind.bounds_N4) for kind in filled.tiles)]
        has = [self.room.texts, *self.room.tiles]
        return filled.tokens == self.room.tokens and all(map(le, needed, has))

    def put(self, filled: Filled) -> None:
        """Take up a batch that it holds, without waiting for a GPU."""
        host = np.zeros(len(self._ints), dtype=np.int32)
        for start, part in zip(self._starts, self._parts(filled), strict=True):
            host[start : start + len(part)] = part
        self._ints.copy_(to_device(torch.from_numpy(host), self._device))

    def _parts(self, filled: Filled) -> list[npt.NDArray[Any]]:
        """What the parts hold; what is behind it in each is zero."""
        arranged = filled.arranged
        # In front, so that the first token of an empty text is one that there is.
        empty = self.room.texts - len(arranged.lengths_B)
        return [
            arranged.input_ids_T,
            arranged.position_ids_T,
            np.repeat(np.arange(empty, self.room.texts), arranged.lengths_B),
            np.concatenate([np.zeros(empty + 1, dtype=np.int64), np.cumsum(arranged.lengths_B)]),
            arranged.restore_B + empty,
            *(kind.bounds_N4.reshape(-1) for kind in filled.tiles),
        ]
