"""From row numbers of graded pairs to the loss: both texts of each pair, and their cosines in the order of the grades.

Shapes: `N` rows of the batch, `F` and `S` its distinct first and second texts, `E` embedding size.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from embedtune.data.collection import IdArray, Pairs
from embedtune.data.tokens import TokenTable
from embedtune.losses.cosent import cosent
from embedtune.models.encoder import Encoder
from embedtune.models.packing import TokenIds, to_device
from embedtune.training.microbatch import MicroBatch, embed_batch
from embedtune.training.replay import Replay


@dataclass
class GradedObjective:
    """CoSENT over a batch of graded pairs; what the step loop minimises. None is right or wrong, so none is masked."""

    encoder: Encoder
    pairs: Pairs
    first_tokens: TokenTable
    """Of the texts that `pairs.query_ids` numbers."""
    second_tokens: TokenTable
    scale: float
    micro_batch: MicroBatch = field(default_factory=MicroBatch)
    """How much of a batch goes through the encoder at a time."""

    def __post_init__(self) -> None:
        self._replay = Replay(self.encoder)

    def __call__(self, rows: IdArray) -> tuple[Tensor, int]:
        """The loss over the rows, and how many tokens were embedded for it."""
        assert self.pairs.grades is not None
        texts, firsts_N, seconds_N = self._texts(rows)
        embeddings = embed_batch(self.encoder, texts, self.micro_batch, self._replay.embed)
        device = embeddings.device
        first_NE, second_NE = (embeddings[to_device(places_N, device)] for places_N in (firsts_N, seconds_N))
        cosines_N = (first_NE * second_NE).sum(dim=1)
        loss = cosent(cosines_N, torch.as_tensor(self.pairs.grades[rows]).to(device), scale=self.scale)
        return loss, sum(len(text) for text in texts)

    @torch.no_grad()
    def not_finite(self, rows: IdArray) -> list[str]:
        """The texts of these rows whose embeddings are NaN or infinite, as their tokens read."""
        texts, _, _ = self._texts(rows)
        finite_B = embed_batch(self.encoder, texts, self.micro_batch).isfinite().all(dim=1)
        bad = [texts[place] for place in (~finite_B).nonzero()[:, 0].tolist()]
        return [self.encoder.tokenizer.decode(ids, skip_special_tokens=True) for ids in bad]

    def _texts(self, rows: IdArray) -> tuple[list[TokenIds], IdArray, IdArray]:
        """The distinct texts of the rows, first ones first, and the place of each row's two among them."""
        first_ids, firsts_N = np.unique(self.pairs.query_ids[rows], return_inverse=True)
        second_ids, seconds_N = np.unique(self.pairs.passage_ids[rows], return_inverse=True)
        texts = [self.first_tokens[int(i)] for i in first_ids]
        texts += [self.second_tokens[int(i)] for i in second_ids]
        return texts, firsts_N, len(first_ids) + seconds_N
