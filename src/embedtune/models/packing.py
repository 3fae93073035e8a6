"""Texts of a batch as one packed sequence, or padded for models that can't be packed.

Shapes: `B` texts, `T` tokens of all of them, `L` tokens of the longest.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from embedtune.kernels import transfer
from embedtune.kernels.attention.layout import PackedLayout, packed_layout

TokenIds = npt.NDArray[np.int32]
Places = npt.NDArray[np.int64]
"""Places of some of the texts given."""


@dataclass(frozen=True)
class PackedBatch:
    """`B` texts one after another, sorted by length; `restore_B` brings their embeddings back in order."""

    input_ids_1T: Tensor
    position_ids_1T: Tensor
    layout: PackedLayout
    restore_B: Tensor
    """Packed place of each text in the order given: `embeddings[restore_B]`."""

    @property
    def pooling_features(self) -> dict[str, Tensor]:
        """What Sentence Transformers' pooling wants to know; told all of it, it need not wait for a GPU to count."""
        return {"cu_seq_lens_q": self.layout.cu_seqlens, "seq_idx": self.layout.sequence_of_token_T[None]}


class Arrangement(NamedTuple):
    """`B` texts one after another, shortest first."""

    input_ids_T: TokenIds
    position_ids_T: Places
    lengths_B: Places
    """Tokens of each text, in packed order."""
    restore_B: Places
    """Packed place of each text in the order given."""


def arrange(texts: Sequence[TokenIds], *, position_offset: int) -> Arrangement:
    """Concatenate the token ids of B texts.

    Args:
        texts: token ids of each text, none empty.
        position_offset: position id of a text's first token (RoBERTa's family starts behind its padding id).
    """
    lengths_B = np.fromiter((len(ids) for ids in texts), dtype=np.int64, count=len(texts))
    order_B = np.argsort(lengths_B, kind="stable")
    sorted_B = lengths_B[order_B]
    starts_B = np.cumsum(sorted_B) - sorted_B
    restore_B = np.empty_like(order_B)
    restore_B[order_B] = np.arange(len(order_B))
    return Arrangement(
        input_ids_T=np.concatenate([texts[index] for index in order_B]),
        position_ids_T=np.arange(sorted_B.sum()) - np.repeat(starts_B, sorted_B) + position_offset,
        lengths_B=sorted_B,
        restore_B=restore_B,
    )


def pack(texts: Sequence[TokenIds], *, position_offset: int, device: torch.device) -> PackedBatch:
    """As `arrange`, on a device."""
    arranged = arrange(texts, position_offset=position_offset)
    return PackedBatch(
        input_ids_1T=to_device(arranged.input_ids_T, device)[None],
        position_ids_1T=to_device(arranged.position_ids_T, device)[None],
        layout=packed_layout(arranged.lengths_B.tolist(), device),
        restore_B=to_device(arranged.restore_B, device),
    )


def pad(texts: Sequence[TokenIds], *, pad_id: int, device: torch.device) -> dict[str, Tensor]:
    """The same texts padded on the right: `input_ids` and `attention_mask`, each (B, L)."""
    longest = max(len(ids) for ids in texts)
    input_ids_BL = np.full((len(texts), longest), pad_id)
    attention_mask_BL = np.zeros((len(texts), longest), dtype=np.int64)
    for row, ids in enumerate(texts):
        input_ids_BL[row, : len(ids)] = ids
        attention_mask_BL[row, : len(ids)] = 1
    return {"input_ids": to_device(input_ids_BL, device), "attention_mask": to_device(attention_mask_BL, device)}


def to_device(ids: npt.NDArray[np.integer[Any]], device: torch.device) -> Tensor:
    """The array as an int64 tensor there, without waiting for a GPU."""
    return transfer.to_device(torch.from_numpy(ids.astype(np.int64, order="C")), device)


def cut(lengths_N: Places, tokens: int, *, padded: bool) -> list[Places]:
    """The places of N texts in batches of at most `tokens` tokens, longest first; a longer text is one of its own.

    Args:
        lengths_N: tokens of each text.
        tokens: of a batch at the most.
        padded: each text of a batch counts as many tokens as its longest.
    """
    order_N = np.argsort(-lengths_N, kind="stable")
    batches, start = [], 0
    while start < len(order_N):
        count = tokens // max(1, int(lengths_N[order_N[start]]))
        if not padded:
            # A text has a token or more, so no more than that many texts need to be looked at.
            cumulative = np.cumsum(lengths_N[order_N[start : start + tokens]])
            count = int(np.searchsorted(cumulative, tokens, side="right"))
        batches.append(order_N[start : start + max(1, count)])
        start += max(1, count)
    return batches


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


def can_pack(features: Mapping[str, Any]) -> bool:
    """Whether these are plain texts: token ids with a mask, none of them empty, none a pair of texts."""
    if not {"input_ids", "attention_mask"} <= features.keys() or features["input_ids"].ndim != 2:
        return False
    segments = features.get("token_type_ids")
    if segments is not None and bool(segments.any()):
        return False
    return bool(features["attention_mask"].any(dim=1).all())
