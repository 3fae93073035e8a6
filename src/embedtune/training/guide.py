"""Embeddings of the training texts by another model, which tell which negatives look like answers.

Shapes: `N` texts, `G` the guide's embedding size.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from embedtune.config import ModelConfig
from embedtune.data.collection import Collection, IdArray, Pairs
from embedtune.kernels.transfer import to_device
from embedtune.losses.batch import Guide
from embedtune.models.encoder import Role
from embedtune.models.load import load_encoder
from embedtune.progress import Reporter
from embedtune.training.batch import ContrastiveBatch

HalfArray = npt.NDArray[np.float16]


@dataclass(frozen=True)
class GuideTable:
    """Normalised embeddings in host memory, in fp16: their cosines are good to some 1e-4, and need half the space."""

    query_ids: IdArray
    """Ids of the collection, ascending, shape (N,)."""
    passage_ids: IdArray
    queries_NG: HalfArray
    passages_NG: HalfArray
    margin: float

    def of(self, batch: ContrastiveBatch, device: torch.device) -> Guide:
        """The embeddings of a batch's rows and passages, in fp32."""
        queries = np.searchsorted(self.query_ids, batch.query_ids[batch.queries_Q])
        passages = np.searchsorted(self.passage_ids, batch.passage_ids)
        queries_QG, passages_PG = (
            to_device(torch.from_numpy(half), device).float()
            for half in (self.queries_NG[queries], self.passages_NG[passages])
        )
        return Guide(queries_QG, passages_PG, self.margin)


def guide_table(
    model: ModelConfig, pairs: Pairs, collection: Collection, *, margin: float, reporter: Reporter
) -> GuideTable:
    """Load the guide, embed every text that is trained on, and let it go.

    Args:
        model: the guide.
        pairs: the training rows.
        collection: of their texts.
        margin: of `Guide`.
        reporter: is told how it goes.

    Raises:
        ModelError: it can't be used.
    """
    encoder = load_encoder(model)
    query_ids = np.unique(pairs.query_ids)
    negatives = [passage for row in pairs.negative_ids for passage in row]
    passage_ids = np.unique(np.concatenate([pairs.passage_ids, np.asarray(negatives, dtype=np.int64)]))
    with reporter.counting(f"guide: {model.base}", len(query_ids) + len(passage_ids)) as advance:

        def embed(texts: list[str], ids: IdArray, role: Role) -> HalfArray:
            table = encoder.token_table([texts[id_] for id_ in ids], role)
            half: HalfArray = encoder.embed_all(table, on_progress=advance).half().numpy()
            return half

        queries_NG = embed(collection.queries, query_ids, "query")
        passages_NG = embed(collection.passages, passage_ids, "passage")
    return GuideTable(query_ids, passage_ids, queries_NG, passages_NG, margin)
