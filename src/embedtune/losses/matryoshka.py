"""Any loss at several embedding sizes, so that the first numbers of an embedding are an embedding.

Shapes: `N` texts, `E` embedding size.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor
from torch.nn import functional

from embedtune.losses.batch import EmbeddedBatch, Loss


def matryoshka(loss: Loss, sizes: Sequence[int], weights: Sequence[float] = ()) -> Loss:
    """The loss of embeddings that are cut off at each size and normalised again, as a mean or a weighted sum.

    Source: Kusupati et al. 2022, eq. 1, with the loss in the place of the classifier's. The guide's embeddings and the
    teacher's scores stay as they are.

    Args:
        loss: of a batch.
        sizes: numbers that are kept of an embedding, none more than it has.
        weights: of the loss at each size; the mean of them all if empty.
    """
    factors = weights or [1 / len(sizes)] * len(sizes)

    def at_every_size(batch: EmbeddedBatch) -> Tensor:
        losses = [factor * loss(_cut(batch, size)) for size, factor in zip(sizes, factors, strict=True)]
        return torch.stack(losses).sum()

    return at_every_size


def _cut(batch: EmbeddedBatch, size: int) -> EmbeddedBatch:
    return replace(batch, queries_QE=_first(batch.queries_QE, size), passages_PE=_first(batch.passages_PE, size))


def _first(embeddings_NE: Tensor, size: int) -> Tensor:
    if size == embeddings_NE.shape[1]:
        return embeddings_NE
    return functional.normalize(embeddings_NE[:, :size], dim=-1)
