"""A dev set as a file, and the curve of a metric on it while a model trains.

Shapes: `Q` queries, `D` passages, `E` embedding size.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from benchmarks.measure import now
from embedtune.data.collection import Collection
from embedtune.evaluation.run import RetrievalTask, evaluate_embeddings

METRIC = "ndcg@10"


@dataclass(frozen=True, kw_only=True)
class Dev:
    """Queries, the passages they are asked of, and which of them answer."""

    queries: list[str]
    passages: list[str]
    qrels: list[dict[int, float]]
    """For each query, {row of a passage: grade}."""

    def ndcg(self, queries_QE: Tensor, passages_DE: Tensor) -> float:
        """Mean NDCG@10 of a model that embeds so; embeddings need not be normalised."""
        task = RetrievalTask(
            query_ids=np.arange(len(self.queries)),
            passage_ids=np.arange(len(self.passages)),
            qrels=dict(enumerate(self.qrels)),
        )
        normalised = (functional.normalize(x.float(), dim=1) for x in (queries_QE, passages_DE))
        return evaluate_embeddings(task, *normalised).means[METRIC]


def write_dev(task: RetrievalTask, collection: Collection, path: Path) -> None:
    """The texts of a task, and its relevant passages by their rows."""
    rows = {passage: row for row, passage in enumerate(task.passage_ids.tolist())}
    dev = Dev(
        queries=[collection.queries[query] for query in task.query_ids.tolist()],
        passages=[collection.passages[passage] for passage in rows],
        qrels=[{rows[p]: grade for p, grade in task.qrels[query].items()} for query in task.query_ids.tolist()],
    )
    path.write_text(json.dumps(asdict(dev)), encoding="utf-8")


def read_dev(path: str | Path) -> Dev:
    found = json.loads(Path(path).read_text(encoding="utf-8"))
    qrels = [{int(row): grade for row, grade in relevant.items()} for relevant in found["qrels"]]
    return Dev(queries=found["queries"], passages=found["passages"], qrels=qrels)


@dataclass
class Curve:
    """A dev metric by the time spent on training; the time of evaluations is not counted."""

    device: torch.device
    evaluate: Callable[[], float]
    target: float
    """The metric that is to be reached."""
    steps: list[int] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)
    values: list[float] = field(default_factory=list)
    _spent: float = 0.0
    _since: float | None = None

    def start(self) -> None:
        """Training begins or goes on."""
        self._since = now(self.device)

    def stop(self) -> None:
        """Training pauses."""
        if self._since is not None:
            self._spent += now(self.device) - self._since
            self._since = None

    def measure(self, steps: int) -> float:
        """Pause, evaluate after so many steps, and go on."""
        self.stop()
        self.steps.append(steps)
        self.seconds.append(self._spent)
        self.values.append(self.evaluate())
        self.start()
        return self.values[-1]

    @property
    def reached(self) -> bool:
        return bool(self.values) and self.values[-1] >= self.target
