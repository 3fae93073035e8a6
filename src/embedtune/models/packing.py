"""Texts of a batch as one packed sequence, or padded for models that can't be packed.

Shapes: `B` texts, `T` tokens of all of them, `L` tokens of the longest.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from embedtune.kernels.attention.layout import PackedLayout, packed_layout

TokenIds = npt.NDArray[np.int32]


@dataclass(frozen=True)
class PackedBatch:
    """`B` texts one after another, sorted by length; `restore_B` brings their embeddings back in order."""

    input_ids_1T: Tensor
    position_ids_1T: Tensor
    layout: PackedLayout
    restore_B: Tensor
    """Packed place of each text in the order given: `embeddings[restore_B]`."""


def pack(texts: Sequence[TokenIds], *, position_offset: int, device: torch.device) -> PackedBatch:
    """Concatenate the token ids of B texts, shortest first.

    Args:
        texts: token ids of each text, none empty.
        position_offset: position id of a text's first token (RoBERTa's family starts behind its padding id).
        device: where the tensors go.
    """
    lengths = np.fromiter((len(ids) for ids in texts), dtype=np.int64, count=len(texts))
    order = np.argsort(lengths, kind="stable")
    sorted_lengths = lengths[order]
    starts = np.cumsum(sorted_lengths) - sorted_lengths
    positions_T = np.arange(sorted_lengths.sum()) - np.repeat(starts, sorted_lengths) + position_offset
    restore = np.empty_like(order)
    restore[order] = np.arange(len(order))
    flat_T = np.concatenate([texts[index] for index in order])

    def on_device(array: npt.NDArray[np.generic]) -> Tensor:
        return torch.from_numpy(array.astype(np.int64)).to(device, non_blocking=True)

    return PackedBatch(
        input_ids_1T=on_device(flat_T)[None],
        position_ids_1T=on_device(positions_T)[None],
        layout=packed_layout(sorted_lengths.tolist(), device),
        restore_B=on_device(restore),
    )


def pad(texts: Sequence[TokenIds], *, pad_id: int, device: torch.device) -> dict[str, Tensor]:
    """The same texts padded on the right: `input_ids` and `attention_mask`, each (B, L)."""
    longest = max(len(ids) for ids in texts)
    input_ids_BL = torch.full((len(texts), longest), pad_id, dtype=torch.int64)
    attention_mask_BL = torch.zeros(len(texts), longest, dtype=torch.int64)
    for row, ids in enumerate(texts):
        input_ids_BL[row, : len(ids)] = torch.from_numpy(ids.astype(np.int64))
        attention_mask_BL[row, : len(ids)] = 1
    return {"input_ids": input_ids_BL.to(device), "attention_mask": attention_mask_BL.to(device)}


def unpad(input_ids_BL: Tensor, mask_BL: Tensor) -> list[TokenIds]:
    """The token ids of each text of a padded batch, padded on either side.

    Args:
        input_ids_BL: token ids.
        mask_BL: bool, True where there is a token.
    """
    ids_BL, kept_BL = input_ids_BL.to("cpu", torch.int32).numpy(), mask_BL.cpu().numpy()
    return [ids[kept] for ids, kept in zip(ids_BL, kept_BL, strict=True)]


def token_order(batch: PackedBatch) -> Tensor:
    """Packed place of every token in the order in which the texts were given, shape (T,)."""
    lengths = np.asarray(batch.layout.lengths)
    starts, given = np.cumsum(lengths) - lengths, batch.restore_B.cpu().numpy()
    order_T = np.concatenate([np.arange(starts[place], starts[place] + lengths[place]) for place in given])
    return torch.from_numpy(order_T).to(batch.restore_B.device)
