"""What a model can do beside the task it was tuned for, before and after: the price of fine-tuning.

Shapes: `N` pairs of sentences or questions of a set, `R` resamples of one batch.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from embedtune.evaluation.general import GeneralSet, RetrievalSet, SimilaritySet
from embedtune.evaluation.metrics import FloatArray
from embedtune.evaluation.noise import difference_interval
from embedtune.evaluation.run import evaluate_embeddings
from embedtune.evaluation.similarity import rank_correlations
from embedtune.models.encoder import Encoder


@dataclass(frozen=True, kw_only=True)
class SetScores:
    """What a model reached on one set, item by item."""

    name: str
    metric: Literal["spearman", "ndcg@10"]
    values_N: FloatArray
    """The cosine similarity of each pair, or NDCG@10 of each question."""
    grades_N: FloatArray | None = None
    """How alike each pair is to a person; None for questions."""

    @property
    def score(self) -> float:
        """Spearman's rank correlation with the grades, or mean NDCG@10."""
        if self.grades_N is None:
            return float(self.values_N.mean())
        return float(rank_correlations(self.values_N[None], self.grades_N[None])[0])


def measure(
    encoder: Encoder, sets: Sequence[GeneralSet], *, on_progress: Callable[[int], None] | None = None
) -> list[SetScores]:
    """Scores of an encoder on general sets.

    The two sentences of a pair have the same role, so neither the query's nor the passage's prompt is put before them
    but the model's default prompt, which most models don't have; so does Sentence Transformers'
    `EmbeddingSimilarityEvaluator`. Questions and passages get the prompts of their roles.

    Args:
        encoder: The model.
        sets: From `general_sets`.
        on_progress: Called with the number of texts done after each batch; `texts_in` is how many there are.
    """
    return [
        _similarity(encoder, general, on_progress)
        if isinstance(general, SimilaritySet)
        else _retrieval(encoder, general, on_progress)
        for general in sets
    ]


def texts_in(sets: Sequence[GeneralSet]) -> int:
    """How many texts `measure` embeds."""
    return sum(
        2 * len(general.first)
        if isinstance(general, SimilaritySet)
        else len(general.task.query_ids) + len(general.task.passage_ids)
        for general in sets
    )


def mean_score(scores: Sequence[SetScores]) -> float:
    """One number for all sets, each counting the same: their mean."""
    return float(np.mean([one.score for one in scores]))


def forgetting_facts(base: Sequence[SetScores], tuned: Sequence[SetScores], *, seed: int) -> list[dict[str, Any]]:
    """For the results: each set's scores before and after, and a 95 % interval of their difference.

    Raises:
        ValueError: The two were not measured on the same sets.
    """
    facts = []
    for before, after in zip(base, tuned, strict=True):
        if (before.name, len(before.values_N)) != (after.name, len(after.values_N)):
            raise ValueError(f"base was measured on '{before.name}', tuned on '{after.name}'; expected the same sets")
        low, high = difference_interval(before.values_N, after.values_N, seed=seed, grades_N=before.grades_N)
        facts.append(
            {
                "name": before.name,
                "kind": "retrieval" if before.grades_N is None else "similarity",
                "metric": before.metric,
                "items": len(before.values_N),
                "base": before.score,
                "tuned": after.score,
                "delta": {"mean": after.score - before.score, "ci95": [low, high]},
            }
        )
    return facts


def _similarity(encoder: Encoder, pairs: SimilaritySet, on_progress: Callable[[int], None] | None) -> SetScores:
    first_NE, second_NE = (
        encoder.embed_all(encoder.token_table(sentences, None), on_progress=on_progress).double()
        for sentences in (pairs.first, pairs.second)
    )
    cosines_N = (first_NE * second_NE).sum(dim=1).numpy()
    return SetScores(name=pairs.name, metric="spearman", values_N=cosines_N, grades_N=pairs.grades_N)


def _retrieval(encoder: Encoder, questions: RetrievalSet, on_progress: Callable[[int], None] | None) -> SetScores:
    collection, task = questions.collection, questions.task
    queries = encoder.token_table(collection.queries, "query")
    passages = encoder.token_table(collection.passages, "passage")
    queries_QE = encoder.embed_all(queries, task.query_ids, on_progress=on_progress)
    corpus_DE = encoder.embed_all(passages, task.passage_ids, on_progress=on_progress)
    evaluation = evaluate_embeddings(task, queries_QE, corpus_DE)
    return SetScores(name=questions.name, metric="ndcg@10", values_N=evaluation.per_query["ndcg@10"])
