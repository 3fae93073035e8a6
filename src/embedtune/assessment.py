"""What the held-out questions say of a model: beside what, where it helps and hurts, what it costs.

`examine` measures one model; `assess` puts two of them, BM25 and others side by side. A training run and
`embedtune eval` share both.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

import numpy as np

from embedtune.data.collection import Collection
from embedtune.data.tokens import Texts
from embedtune.evaluation.analysis import analyse
from embedtune.evaluation.forgetting import SetScores, forgetting_facts, measure, texts_in
from embedtune.evaluation.general import GeneralSet
from embedtune.evaluation.neighbours import Neighbours, nearest_passages, neighbour_facts
from embedtune.evaluation.questions import question_scores
from embedtune.evaluation.run import Evaluation, RetrievalTask, Roles, compare, evaluate_embeddings, evaluate_hybrid
from embedtune.evaluation.similarity import Similarity
from embedtune.evaluation.sizes import quality_by_size, variants
from embedtune.evaluation.stats import Difference
from embedtune.evaluation.suspects import Suspect
from embedtune.measuring import Embedded, embed, search
from embedtune.models.encoder import Encoder
from embedtune.progress import Reporter
from embedtune.report.results import comparisons

Found = TypeVar("Found", Evaluation, Similarity)


@dataclass(frozen=True, kw_only=True)
class Examination(Generic[Found]):
    """One model on one task, and beside it."""

    evaluation: Found
    general: list[SetScores]
    """What it reached on the sets that tell what a model forgets."""
    neighbours: Neighbours | None
    """Of some passages; None if there is one passage only."""
    sizes: list[dict[str, Any]]
    """Quality of shorter and coarser vectors, as in `results.json`; empty if not asked for."""
    dev: Evaluation | None = None
    """What it reached on the dev set; None if that was not asked for."""


@dataclass(frozen=True, kw_only=True)
class Assessment:
    """What goes into `results.json`, and the suspects, which get a file of their own."""

    evaluations: Mapping[str, Evaluation | Similarity]
    """By system, in the order shown."""
    delta: dict[str, Difference]
    """Judged minus reference, by metric; empty without a reference."""
    sections: dict[str, Any]
    suspects: list[Suspect] | None = field(default_factory=list)
    """None where no label could be wrong: pairs have grades."""
    questions: list[dict[str, Any]] | None = None
    """From `question_scores`; None where nothing is searched."""


def examine(
    encoder: Encoder,
    task: RetrievalTask,
    texts: Texts,
    sets: Sequence[GeneralSet],
    reporter: Reporter,
    *,
    label: str,
    seed: int,
    sizes: bool = False,
    dev: RetrievalTask | None = None,
) -> Examination[Evaluation]:
    """Measure a model on the test set and on general sets, with embeddings made once.

    Args:
        encoder: the model.
        task: the test questions and the corpus.
        texts: theirs, as this model's tokens.
        sets: from `general_sets`.
        reporter: is told how it goes.
        label: what the model is called there.
        seed: of the sample of passages whose neighbours are looked up.
        sizes: whether to try smaller vectors too.
        dev: a further task, whose corpus is within the test's and is not embedded again.
    """
    embedded = embed(encoder, task, texts, reporter, label=label)
    evaluation = search(task, embedded, reporter, label=label)
    with reporter.counting(f"{label}: general sets", texts_in(sets)) as advance:
        general = measure(encoder, sets, on_progress=advance)
    smaller: list[dict[str, Any]] = []
    if sizes:
        tried = variants(embedded.queries_QE.shape[1])
        with reporter.counting(f"{label}: smaller vectors", len(tried)) as advance:
            smaller = quality_by_size(task, *embedded, on_done=advance)
    neighbours = nearest_passages(embedded.corpus_DE, seed=seed) if len(embedded.corpus_DE) > 1 else None
    return Examination(
        evaluation=evaluation,
        general=general,
        neighbours=neighbours,
        sizes=smaller,
        dev=None if dev is None else _evaluate_within(dev, encoder, task, texts, embedded),
    )


def _evaluate_within(
    dev: RetrievalTask, encoder: Encoder, task: RetrievalTask, texts: Texts, embedded: Embedded
) -> Evaluation:
    """The evaluation on a task whose passages are among another's, which are embedded."""
    order_D = np.argsort(task.passage_ids)
    places_D = order_D[np.searchsorted(task.passage_ids, dev.passage_ids, sorter=order_D)]
    queries_QE = encoder.embed_all(texts.queries, dev.query_ids)
    return evaluate_embeddings(dev, queries_QE, embedded.corpus_DE[places_D])


def assess(
    collection: Collection,
    task: RetrievalTask,
    models: Mapping[str, Examination[Evaluation]],
    *,
    bm25: Evaluation,
    further: Mapping[str, Evaluation],
    row_ids: Mapping[int, str],
    seed: int,
) -> Assessment:
    """Everything that is said of a model on held-out questions.

    Args:
        collection: the texts.
        task: the test questions and the corpus.
        models: by the key that they have in `results.json`: the reference, if there is one, and then the judged model.
        bm25: word search on the task.
        further: other models on the task, by name.
        row_ids: of each query id, from `first_row_ids`.
        seed: of the resampling.
    """
    *references, judged = models
    reference = references[0] if references else None
    subject, groups_Q = models[judged].evaluation, task.groups_Q
    beside = {"bm25": bm25, "hybrid": evaluate_hybrid(task, subject, bm25)}
    evaluations = {name: model.evaluation for name, model in models.items()} | beside
    analysis, suspects = analyse(collection, task, evaluations, Roles(judged, reference), seed=seed)
    delta = {}
    if reference is not None:
        delta = compare(models[reference].evaluation, subject, seed=seed, groups_Q=groups_Q)
        analysis["forgetting"] = _cost(models[reference], models[judged], seed=seed)
    if models[judged].sizes:
        analysis["sizes"] = models[judged].sizes
    return Assessment(
        evaluations=evaluations,
        delta=delta,
        sections={**comparisons(subject, beside, further, groups_Q=groups_Q, seed=seed), **analysis},
        suspects=suspects,
        questions=question_scores(collection, task, evaluations, row_ids),
    )


def _cost(reference: Examination[Evaluation], judged: Examination[Evaluation], *, seed: int) -> dict[str, Any]:
    """What the judged model does otherwise than the reference where nobody asked it to."""
    facts: dict[str, Any] = {"sets": forgetting_facts(reference.general, judged.general, seed=seed)}
    if reference.neighbours is not None and judged.neighbours is not None:
        facts["neighbours"] = neighbour_facts(reference.neighbours, judged.neighbours)
    return facts
