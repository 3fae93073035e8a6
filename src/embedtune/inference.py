"""Measure a finished model on a test file."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from embedtune import stages
from embedtune.assessment import assess, examine
from embedtune.config import DataConfig, ModelConfig
from embedtune.data.clean import CollectionBuilder
from embedtune.data.collection import Collection
from embedtune.data.labels import apply_labels, read_labels
from embedtune.data.read import Columns, read, read_passages
from embedtune.errors import ConfigError, OutputError
from embedtune.evaluation.general import general_sets
from embedtune.evaluation.run import Evaluation, RetrievalTask, retrieval_task
from embedtune.evaluation.suspects import write_suspects
from embedtune.export.run_folder import write_json
from embedtune.facts import hub_revisions, task_facts
from embedtune.progress import Reporter, SilentReporter
from embedtune.report.results import build_results, environment


@dataclass(frozen=True, kw_only=True)
class EvalOutput:
    """Files to write what was found to, each only if given."""

    results: Path | None = None
    """JSON."""
    suspects: Path | None = None
    """Suspected label errors, as JSON Lines."""

    def check(self) -> None:
        """Whether they can be written, as far as their folders tell.

        Raises:
            OutputError: a folder does not exist, or is where a file should be.
        """
        for option, path in (("out", self.results), ("suspects", self.suspects)):
            if path is not None and not path.absolute().parent.is_dir():
                raise OutputError(f"--{option} {path}: its folder {path.absolute().parent} does not exist.")
            if path is not None and path.is_dir():
                raise OutputError(
                    f"--{option} {path} is a folder, expected a file.\nType:  --{option} {path / option}.json"
                )


def evaluate_models(
    model: ModelConfig,
    data: DataConfig,
    *,
    against: Sequence[str] = (),
    forgetting: Sequence[str] = (),
    out: EvalOutput | None = None,
    seed: int = 0,
    reporter: Reporter | None = None,
) -> dict[str, Any]:
    """Retrieval metrics of a model, and of others if given, with BM25 and the hybrid of both beside them.

    Args:
        model: `base` is the model to measure.
        data: `test`, `corpus` and `labels`; the corpus searched is the passages of the first two.
        against: hub ids or folders of further models; differences are model minus further, "delta" that to the first.
        forgetting: files of sets that the first of these and the model are compared on, beside the built-in ones.
        out: files to write.
        seed: of the resampling.
        reporter: is told how it goes.

    Raises:
        UserError: the data, a model or an output file can't be used.
    """
    reporter, out = reporter or SilentReporter(), out or EvalOutput()
    out.check()
    if forgetting and not against:
        raise ConfigError("--forgetting compares two models.\nType:  --against MODEL --forgetting FILE")
    collection, task, dropped = _test_collection(data)
    sets = general_sets(forgetting) if against else []
    others = stages.check_loadable(stages.other_models(model, against))
    encoder = stages.load(model, reporter)
    texts = stages.tokenize(encoder, collection, reporter)
    models = {"model": examine(encoder, task, texts, sets, reporter, label=model.base, seed=seed, sizes=True)}
    further: dict[str, Evaluation] = {}
    for first in list(others)[:1]:
        second = stages.load(others[first], reporter)
        own = stages.tokenize(second, collection, reporter)
        models = {"against": examine(second, task, own, sets, reporter, label=first, seed=seed)} | models
        further[first] = models["against"].evaluation
        del second
    rest = {name: other for name, other in others.items() if name not in further}
    further |= stages.evaluate_others(rest, task, collection, reporter)
    bm25 = stages.evaluate_bm25(task, collection, reporter)
    found = assess(collection, task, models, bm25=bm25, further=further, seed=seed)
    found.sections["suspects"]["file"] = None if out.suspects is None else str(out.suspects)
    results = build_results(
        base_model=model.base,
        seed=seed,
        evaluations=found.evaluations,
        delta=found.delta,
        against_model=next(iter(further), None),
        data={**task_facts(task, texts, encoder), "dropped": dropped},
        environment={
            **environment(encoder.device, encoder.source.precision),
            **hub_revisions(encoder.source, others, {}),
        },
        **found.sections,
    )
    if out.suspects is not None:
        write_suspects(out.suspects, found.suspects)
    if out.results is not None:
        write_json(out.results, results)
    return results


def _test_collection(data: DataConfig) -> tuple[Collection, RetrievalTask, dict[str, int]]:
    assert data.test is not None
    builder = CollectionBuilder()
    columns = Columns(data.anchor_column, data.positive_column, data.negative_columns)
    test = builder.add(read(data.test, columns=columns, split="test"))
    if data.corpus is not None:
        test.dropped.update(builder.add_passages(read_passages(data.corpus)))
    if data.labels is not None:
        apply_labels(read_labels(data.labels), builder.collection)
    collection = builder.finish()
    task = retrieval_task(collection, test.pairs.query_ids, np.arange(len(collection.passages)))
    return collection, task, dict(test.dropped)
