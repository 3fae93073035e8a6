"""Many texts through an encoder: batches of so many tokens, and smaller ones where memory runs out.

Shapes: `B` texts of a batch, `N` texts in all, `E` embedding size.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable, Iterator, Sequence

import numpy as np
import torch
from torch import Tensor

from embedtune.data.tokens import TokenTable
from embedtune.models.memory import out_of_memory, release_spares
from embedtune.models.packing import Places, TokenIds, cut

logger = logging.getLogger(__name__)

TOKENS_PER_FORWARD = {"cpu": 8_192, "cuda": 131_072}
"""Tokens of one inference batch; more does not run faster, and needs more memory."""


class InferenceBatches:
    """Cuts texts into batches; once memory ran out, smaller ones."""

    def __init__(self) -> None:
        self._fitting_tokens: int | None = None

    def embed(
        self,
        embed: Callable[[Sequence[TokenIds]], Tensor],
        tokens: TokenTable,
        ids_N: Places,
        *,
        device: torch.device,
        padded: bool,
    ) -> Iterator[tuple[Places, Tensor]]:
        """Embed texts sorted by length, longest first, so that memory runs out at once or never.

        Args:
            embed: one batch of token ids to embeddings (B, E).
            tokens: the texts' token ids.
            ids_N: which of them.
            device: where they are embedded.
            padded: whether the texts of a batch are padded to its longest.

        Yields:
            The places of a batch's texts in `ids_N`, and their embeddings.
        """
        lengths_N = tokens.lengths_N[ids_N]
        most = TOKENS_PER_FORWARD[device.type]
        waiting = deque(cut(lengths_N, self._fitting_tokens or most, padded=padded))
        while waiting:
            places = waiting.popleft()
            batch_BE = self._embed_if_it_fits(embed, [tokens[int(ids_N[place])] for place in places], most)
            if batch_BE is not None:
                yield places, batch_BE
                continue
            left = np.concatenate([places, *waiting])
            smaller = cut(lengths_N[left], self._fitting_tokens or most, padded=padded)
            waiting = deque(left[batch] for batch in smaller)

    def _embed_if_it_fits(
        self, embed: Callable[[Sequence[TokenIds]], Tensor], texts: Sequence[TokenIds], most: int
    ) -> Tensor | None:
        """The embeddings; None if memory ran out. If there was none to spare, batches are half as large from now on."""
        try:
            return embed(texts)
        except (RuntimeError, MemoryError) as error:
            if len(texts) == 1 or not out_of_memory(error):
                raise
        # The error is gone by now, and with it the tensors that its traceback held.
        if release_spares():
            torch.cuda.empty_cache()
            return None
        padded = len(texts) * max(map(len, texts))
        self._fitting_tokens = max(1, min(self._fitting_tokens or most, padded) // 2)
        torch.cuda.empty_cache()
        logger.warning("memory ran out; embedding %d tokens at a time from now on", self._fitting_tokens)
        return None
