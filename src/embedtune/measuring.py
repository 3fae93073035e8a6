"""What an encoder reaches on the questions of a split: embed, search, score."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol, TypeVar

import numpy as np
from torch import Tensor

from embedtune.config import ModelConfig, TrainingConfig
from embedtune.data.collection import Collection, IdArray
from embedtune.data.prepare import Splits
from embedtune.data.tokens import Texts
from embedtune.evaluation.metrics import FloatArray
from embedtune.evaluation.noise import difference_interval
from embedtune.evaluation.run import Evaluation, RetrievalTask, evaluate_embeddings, retrieval_task
from embedtune.evaluation.run import evaluate_bm25 as search_by_word
from embedtune.evaluation.similarity import Similarity, measure_similarity
from embedtune.loading import load, tokenize
from embedtune.models.encoder import Encoder
from embedtune.progress import Reporter, SilentReporter

Found = TypeVar("Found", Evaluation, Similarity, covariant=True)


class Measure(Protocol[Found]):
    """Tells how well an encoder does on a test set."""

    def __call__(self, encoder: Encoder, texts: Texts, reporter: Reporter, *, label: str) -> Found: ...


class Embedded(NamedTuple):
    """Normalised embeddings of a task's queries (Q, E) and of its corpus (D, E), in the task's order."""

    queries_QE: Tensor
    corpus_DE: Tensor


def held_out_task(splits: Splits) -> RetrievalTask:
    """The questions of the test split, asked of every passage there is."""
    return retrieval_task(splits.collection, splits.test.query_ids, np.arange(len(splits.collection.passages)))


def dev_task(splits: Splits, *, size: int, seed: int) -> RetrievalTask:
    """The questions of the dev split, asked of its passages and of as many others as make up `size` (`dev_corpus`).

    Without the others the search would be too easy; with all of them it would take longer than the training between.
    """
    dev, others, wanted = dev_corpus(splits, size)
    corpus = np.concatenate([dev, np.random.default_rng(seed).choice(others, wanted, replace=False)])
    return retrieval_task(splits.collection, splits.dev.query_ids, corpus)


def dev_corpus(splits: Splits, size: int) -> tuple[IdArray, IdArray, int]:
    """The dev passages, the passages that may be beside them, and how many of these are searched too.

    Beside them may be all but those that answer a test question. In a corpus that was given, most of them are none that
    the model trains on: to rank those behind the answers is what it is told to do, and would be no test.
    """
    dev = np.unique(splits.dev.passage_ids)
    qrels = splits.collection.qrels
    answers = [np.fromiter(qrels[query], dtype=np.int64) for query in np.unique(splits.test.query_ids).tolist()]
    taken = np.concatenate([dev, splits.test.passage_ids, *answers])
    others = np.setdiff1d(np.arange(len(splits.collection.passages)), taken)
    return dev, others, min(max(0, size - len(dev)), len(others))


def dev_texts(splits: Splits, size: int) -> int:
    """How many texts an encoder embeds to be measured on the dev split; size as of `dev_task`."""
    if splits.collection.graded:
        return 2 * len(splits.dev)
    passages, _, others = dev_corpus(splits, size)
    return len(np.unique(splits.dev.query_ids)) + len(passages) + others


@dataclass(frozen=True)
class DevSet:
    """The dev split as encoders are measured on it: by a search, or by the cosines of graded pairs."""

    measure: Callable[[Encoder], Evaluation | Similarity]
    task: RetrievalTask | None
    """What is searched; None of graded pairs."""
    seed: int = 0
    """Of the resampling."""
    base: Evaluation | None = None
    """What the base reached, where training begins with a model that embeds as the base does and that is known."""
    grades_N: FloatArray | None = None
    """Of graded pairs."""

    def worse(self, items: Sequence[float], than: Sequence[float]) -> bool:
        """Whether one model is worse than another by more than noise: the 95 % interval of the difference is below 0.

        Args:
            items: `items_of` what the one reached.
            than: those of the other.
        """
        groups_N = None if self.task is None else self.task.groups_Q
        one_N, other_N = (np.asarray(values, dtype=np.float64) for values in (items, than))
        return difference_interval(other_N, one_N, seed=self.seed, grades_N=self.grades_N, groups_N=groups_N)[1] < 0


def dev_set(splits: Splits, texts: Texts, config: TrainingConfig, *, seed: int) -> DevSet:
    """The dev split, for every training of a run and for the models between base and tuned."""
    if splits.collection.graded:
        return DevSet(
            lambda encoder: measure_similarity(encoder, splits.dev, texts.queries, texts.passages),
            None,
            seed=seed,
            grades_N=splits.dev.grades,
        )
    task = dev_task(splits, size=config.dev_corpus, seed=seed)
    return DevSet(lambda encoder: evaluate(encoder, task, texts), task, seed=seed)


def evaluate(
    encoder: Encoder, task: RetrievalTask, texts: Texts, reporter: Reporter | None = None, *, label: str = "evaluation"
) -> Evaluation:
    """Embed the task's queries and corpus, search, and score."""
    reporter = reporter or SilentReporter()
    embedded = embed(encoder, task, texts, reporter, label=label)
    return search(task, embedded, reporter, label=label)


def search(task: RetrievalTask, embedded: Embedded, reporter: Reporter, *, label: str) -> Evaluation:
    """Search with embeddings that are there already, and score."""
    with reporter.counting(f"{label}: search", len(task.query_ids)) as advance:
        return evaluate_embeddings(task, *embedded, on_progress=advance)


def embed(
    encoder: Encoder, task: RetrievalTask, texts: Texts, reporter: Reporter | None = None, *, label: str = "embedding"
) -> Embedded:
    """The task's queries and its corpus; more than one thing is measured with them, and making them takes the time."""
    reporter = reporter or SilentReporter()
    with reporter.counting(label, len(task.query_ids) + len(task.passage_ids)) as advance:
        queries_QE = encoder.embed_all(texts.queries, task.query_ids, on_progress=advance)
        corpus_DE = encoder.embed_all(texts.passages, task.passage_ids, on_progress=advance)
    return Embedded(queries_QE, corpus_DE)


def evaluate_bm25(task: RetrievalTask, collection: Collection, reporter: Reporter | None = None) -> Evaluation:
    """Word search on the same task."""
    with (reporter or SilentReporter()).counting("BM25: search", len(task.query_ids)) as advance:
        return search_by_word(task, collection, on_progress=advance)


def evaluate_others(
    models: Mapping[str, ModelConfig], measure: Measure[Found], collection: Collection, reporter: Reporter
) -> dict[str, Found]:
    """What `measure` finds of other models by their names, one model in memory at a time."""
    found = {}
    for name, model in models.items():
        encoder = load(model, reporter)
        texts = tokenize(encoder, collection, reporter)
        found[name] = measure(encoder, texts, reporter, label=name)
    return found
