"""From row numbers to the loss: which texts of a batch are embedded, and who answers whom among them.

Shapes: `Q` rows of the batch, `P` its distinct passages, `E` embedding size, `A` known answers.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from embedtune.data.collection import IdArray, Pairs
from embedtune.data.tokens import TokenTable
from embedtune.losses.dispatch import choose_info_nce
from embedtune.models.encoder import Encoder
from embedtune.models.packing import to_device
from embedtune.training.microbatch import MicroBatch, embed_batch


@dataclass(frozen=True)
class ContrastiveBatch:
    """The distinct texts of a batch; each is embedded once, however many rows it comes in."""

    query_ids: IdArray
    """Distinct questions, ids of the collection."""
    passage_ids: IdArray
    """Distinct passages, positives and hard negatives, shape (P,)."""
    queries_Q: IdArray
    """Place of each row's question in `query_ids`."""
    positives_Q: IdArray
    """Place of each row's positive in `passage_ids`."""
    answers_2A: IdArray
    """Row of a question and place in `passage_ids` of a passage that is known to answer it, own positives included."""


@dataclass
class ContrastiveObjective:
    """The loss of a batch of rows; what the step loop minimises."""

    encoder: Encoder
    pairs: Pairs
    """The rows; others in a phase with mined negatives."""
    qrels: Mapping[int, Mapping[int, float]]
    query_tokens: TokenTable
    passage_tokens: TokenTable
    scale: float
    both_directions: bool
    micro_batch: MicroBatch = field(default_factory=MicroBatch)
    """How much of a batch goes through the encoder at a time."""

    def __call__(self, rows: IdArray) -> tuple[Tensor, int]:
        """The mean loss over the rows, and how many tokens were embedded for it.

        Questions and passages go through the encoder together.
        """
        batch = contrastive_batch(self.pairs, rows, self.qrels)
        texts = [self.query_tokens[int(i)] for i in batch.query_ids]
        texts += [self.passage_tokens[int(i)] for i in batch.passage_ids]
        embeddings = embed_batch(self.encoder, texts, self.micro_batch)
        queries_UE, passages_PE = torch.split(embeddings, [len(batch.query_ids), len(batch.passage_ids)])
        device = embeddings.device
        info_nce = choose_info_nce(len(rows), len(batch.passage_ids))
        loss = info_nce(
            queries_UE[to_device(batch.queries_Q, device)],
            passages_PE,
            to_device(batch.positives_Q, device),
            to_device(batch.answers_2A, device),
            scale=self.scale,
            both_directions=self.both_directions,
        )
        return loss, sum(len(text) for text in texts)

    @torch.no_grad()
    def not_finite(self, rows: IdArray) -> list[str]:
        """The texts of these rows whose embeddings are NaN or infinite, as their tokens read."""
        batch = contrastive_batch(self.pairs, rows, self.qrels)
        texts = [self.query_tokens[int(i)] for i in batch.query_ids]
        texts += [self.passage_tokens[int(i)] for i in batch.passage_ids]
        finite_B = embed_batch(self.encoder, texts, self.micro_batch).isfinite().all(dim=1)
        bad = [texts[place] for place in (~finite_B).nonzero()[:, 0].tolist()]
        return [self.encoder.tokenizer.decode(ids, skip_special_tokens=True) for ids in bad]


def contrastive_batch(pairs: Pairs, rows: IdArray, qrels: Mapping[int, Mapping[int, float]]) -> ContrastiveBatch:
    """Gather the distinct texts of the rows and mark every known answer among them."""
    query_of_row = pairs.query_ids[rows]
    positive_of_row = pairs.passage_ids[rows]
    query_ids, queries_Q = np.unique(query_of_row, return_inverse=True)
    passage_ids = _distinct_passages(pairs, rows)
    place = {int(passage): column for column, passage in enumerate(passage_ids)}
    answers: list[tuple[int, int]] = []
    for row, query in enumerate(query_of_row):
        known = qrels.get(int(query), {})
        # Whichever is shorter: a question may have thousands of answers, or a batch thousands of passages.
        candidates = known.keys() & place.keys() if len(known) > len(place) else known
        answers += [(row, place[passage]) for passage in candidates if passage in place]
    return ContrastiveBatch(
        query_ids=query_ids,
        passage_ids=passage_ids,
        queries_Q=queries_Q,
        positives_Q=np.searchsorted(passage_ids, positive_of_row),
        answers_2A=np.asarray(answers, dtype=np.int64).reshape(-1, 2).T,
    )


def batch_tokens(pairs: Pairs, rows: IdArray, query_tokens: TokenTable, passage_tokens: TokenTable) -> int:
    """Tokens of the distinct texts of the rows."""
    query_ids, passage_ids = np.unique(pairs.query_ids[rows]), _distinct_passages(pairs, rows)
    return int(query_tokens.lengths_N[query_ids].sum() + passage_tokens.lengths_N[passage_ids].sum())


def _distinct_passages(pairs: Pairs, rows: IdArray) -> IdArray:
    """Positives and hard negatives of the rows, ascending."""
    negatives = [passage for row in rows for passage in pairs.negative_ids[row]]
    return np.unique(np.concatenate([pairs.passage_ids[rows], np.asarray(negatives, dtype=np.int64)]))
