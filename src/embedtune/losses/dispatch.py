"""Which version of the contrastive loss a batch gets."""

from __future__ import annotations

from typing import Protocol

from torch import Tensor

from embedtune.losses import infonce, tiled
from embedtune.losses.batch import Guide


class InfoNCE(Protocol):
    """The signature that both versions share; see `infonce`."""

    def __call__(
        self,
        queries_QE: Tensor,
        passages_PE: Tensor,
        positives_Q: Tensor,
        answers_2A: Tensor,
        *,
        scale: float | Tensor = 20.0,
        both_directions: bool = False,
        guide: Guide | None = None,
    ) -> Tensor: ...


def choose_info_nce(queries: int, passages: int) -> InfoNCE:
    """The plain loss, or the tiled one where the scores are more than a tile of it."""
    return infonce.info_nce if queries * passages <= tiled.TILE_SCORES else tiled.info_nce
