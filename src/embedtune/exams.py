"""What a model is held to on rows that it was not trained on: a search, or the grades of pairs.

Which of the two it is, the data tells; who runs it need not know.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

import numpy as np

from embedtune import measuring
from embedtune.assessment import Assessment, Examination, assess, examine
from embedtune.data.collection import Collection, Pairs
from embedtune.data.split import connected_groups
from embedtune.data.tokens import Texts
from embedtune.evaluation.forgetting import forgetting_facts, measure, texts_in
from embedtune.evaluation.general import GeneralSet
from embedtune.evaluation.questions import first_row_ids
from embedtune.evaluation.run import Evaluation, RetrievalTask, retrieval_task
from embedtune.evaluation.similarity import Similarity, compare_similarity, measure_similarity, texts_in_pairs
from embedtune.facts import graded_facts, task_facts
from embedtune.models.encoder import Encoder
from embedtune.progress import Reporter
from embedtune.report.results import differences_json

Found = TypeVar("Found", Evaluation, Similarity)


class Exam(Protocol[Found]):
    """A test set, and everything that is measured on it."""

    def evaluate(self, encoder: Encoder, texts: Texts, reporter: Reporter, *, label: str) -> Found:
        """The metrics alone."""
        ...

    def examine(
        self,
        encoder: Encoder,
        texts: Texts,
        sets: Sequence[GeneralSet],
        reporter: Reporter,
        *,
        label: str,
        sizes: bool = False,
        dev: RetrievalTask | None = None,
    ) -> Examination[Found]:
        """The metrics, and what a model reaches beside; arguments are those of `assessment.examine`."""
        ...

    def assess(self, models: Mapping[str, Examination[Found]], further: Mapping[str, Found]) -> Assessment:
        """Everything that is said of the last of the models; arguments are those of `assessment.assess`."""
        ...

    def facts(self, texts: Texts, encoder: Encoder) -> dict[str, Any]:
        """For the section "data" of the results: how much there is to test on."""
        ...


def set_exam(collection: Collection, pairs: Pairs, reporter: Reporter, *, seed: int) -> Exam[Any]:
    """The exam that fits the rows: by their grades if they have any, else by search among all passages, BM25's too.

    Args:
        collection: the texts.
        pairs: the rows to test on.
        reporter: is told how it goes.
        seed: of the resampling.
    """
    if collection.graded:
        return GradedExam(collection, pairs, seed)
    task = retrieval_task(collection, pairs.query_ids, np.arange(len(collection.passages)))
    return RetrievalExam(collection, pairs, task, measuring.evaluate_bm25(task, collection, reporter), seed)


@dataclass(frozen=True)
class RetrievalExam:
    """Questions asked of a corpus."""

    collection: Collection
    pairs: Pairs
    task: RetrievalTask
    bm25: Evaluation
    seed: int

    def evaluate(self, encoder: Encoder, texts: Texts, reporter: Reporter, *, label: str) -> Evaluation:
        return measuring.evaluate(encoder, self.task, texts, reporter, label=label)

    def examine(
        self,
        encoder: Encoder,
        texts: Texts,
        sets: Sequence[GeneralSet],
        reporter: Reporter,
        *,
        label: str,
        sizes: bool = False,
        dev: RetrievalTask | None = None,
    ) -> Examination[Evaluation]:
        return examine(encoder, self.task, texts, sets, reporter, label=label, seed=self.seed, sizes=sizes, dev=dev)

    def assess(self, models: Mapping[str, Examination[Evaluation]], further: Mapping[str, Evaluation]) -> Assessment:
        row_ids = first_row_ids(self.pairs)
        return assess(
            self.collection, self.task, models, bm25=self.bm25, further=further, row_ids=row_ids, seed=self.seed
        )

    def facts(self, texts: Texts, encoder: Encoder) -> dict[str, Any]:
        return task_facts(self.task, texts, encoder)


@dataclass(frozen=True)
class GradedExam:
    """Graded pairs: does the model find those more alike that people, or a teacher, do?

    Word search ranks passages for a question and has no part in it; nor have smaller vectors and neighbours.
    """

    collection: Collection
    pairs: Pairs
    seed: int

    def evaluate(self, encoder: Encoder, texts: Texts, reporter: Reporter, *, label: str) -> Similarity:
        with reporter.counting(label, texts_in_pairs(self.pairs)) as advance:
            return measure_similarity(encoder, self.pairs, texts.queries, texts.passages, on_progress=advance)

    def examine(
        self,
        encoder: Encoder,
        texts: Texts,
        sets: Sequence[GeneralSet],
        reporter: Reporter,
        *,
        label: str,
        sizes: bool = False,
        dev: RetrievalTask | None = None,
    ) -> Examination[Similarity]:
        found = self.evaluate(encoder, texts, reporter, label=label)
        with reporter.counting(f"{label}: general sets", texts_in(sets)) as advance:
            general = measure(encoder, sets, on_progress=advance)
        return Examination(evaluation=found, general=general, neighbours=None, sizes=[])

    def assess(self, models: Mapping[str, Examination[Similarity]], further: Mapping[str, Similarity]) -> Assessment:
        *references, judged = models
        subject = models[judged].evaluation
        groups_N = connected_groups(self.pairs, sentences=self.collection.sentences)
        sections: dict[str, Any] = {
            "task": "similarity",
            "test": {"groups": int(groups_N.max()) + 1},
            "further": [
                {
                    "model": name,
                    "metrics": other.means,
                    "delta": differences_json(compare_similarity(other, subject, seed=self.seed, groups_N=groups_N)),
                }
                for name, other in further.items()
            ],
        }
        delta = {}
        for reference in references:
            before = models[reference]
            delta = compare_similarity(before.evaluation, subject, seed=self.seed, groups_N=groups_N)
            sections["forgetting"] = {"sets": forgetting_facts(before.general, models[judged].general, seed=self.seed)}
        evaluations = {name: model.evaluation for name, model in models.items()}
        return Assessment(evaluations=evaluations, delta=delta, sections=sections, suspects=None)

    def facts(self, texts: Texts, encoder: Encoder) -> dict[str, Any]:
        return graded_facts(self.pairs, self.collection, texts, encoder)
