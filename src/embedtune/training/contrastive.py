"""From row numbers to the loss: which texts of a batch are embedded, and who answers whom among them.

Shapes: `Q` rows of the batch, `P` its distinct passages, `E` embedding size.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from embedtune.data.collection import IdArray, Pairs
from embedtune.data.tokens import TokenTable
from embedtune.losses.infonce import info_nce
from embedtune.models.encoder import Encoder


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
    answers_QP: npt.NDArray[np.bool_]
    """Which passages are known to answer which row's question."""


@dataclass(frozen=True)
class ContrastiveObjective:
    """The loss of a batch of rows; what the step loop minimises."""

    encoder: Encoder
    pairs: Pairs
    qrels: Mapping[int, Mapping[int, float]]
    query_tokens: TokenTable
    passage_tokens: TokenTable
    scale: float
    both_directions: bool

    def __call__(self, rows: IdArray) -> tuple[Tensor, int]:
        """The mean loss over the rows, and how many tokens were embedded for it.

        Questions and passages go through the encoder in one forward.
        """
        batch = contrastive_batch(self.pairs, rows, self.qrels)
        texts = [self.query_tokens[int(i)] for i in batch.query_ids]
        texts += [self.passage_tokens[int(i)] for i in batch.passage_ids]
        embeddings = self.encoder.embed(texts)
        queries_UE, passages_PE = torch.split(embeddings, [len(batch.query_ids), len(batch.passage_ids)])
        device = embeddings.device
        loss = info_nce(
            queries_UE[torch.from_numpy(batch.queries_Q).to(device)],
            passages_PE,
            torch.from_numpy(batch.positives_Q).to(device),
            torch.from_numpy(batch.answers_QP).to(device),
            scale=self.scale,
            both_directions=self.both_directions,
        )
        return loss, sum(len(text) for text in texts)


def contrastive_batch(pairs: Pairs, rows: IdArray, qrels: Mapping[int, Mapping[int, float]]) -> ContrastiveBatch:
    """Gather the distinct texts of the rows and mark every known answer among them."""
    query_of_row = pairs.query_ids[rows]
    positive_of_row = pairs.passage_ids[rows]
    negatives = [passage for row in rows for passage in pairs.negative_ids[row]]
    query_ids, queries_Q = np.unique(query_of_row, return_inverse=True)
    passage_ids = np.unique(np.concatenate([positive_of_row, np.asarray(negatives, dtype=np.int64)]))
    place = {int(passage): column for column, passage in enumerate(passage_ids)}
    answers_QP = np.zeros((len(rows), len(passage_ids)), dtype=np.bool_)
    for row, query in enumerate(query_of_row):
        answers = qrels.get(int(query), {})
        # Whichever is shorter: a question may have thousands of answers, or a batch thousands of passages.
        known = answers.keys() & place.keys() if len(answers) > len(place) else answers
        for passage in known:
            if passage in place:
                answers_QP[row, place[passage]] = True
    return ContrastiveBatch(
        query_ids=query_ids,
        passage_ids=passage_ids,
        queries_Q=queries_Q,
        positives_Q=np.searchsorted(passage_ids, positive_of_row),
        answers_QP=answers_QP,
    )
