"""Measure a finished model on a test file."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from embedtune import stages
from embedtune.config import DataConfig, ModelConfig
from embedtune.data.clean import CollectionBuilder
from embedtune.data.collection import Collection
from embedtune.data.labels import apply_labels, read_labels
from embedtune.data.read import Columns, read, read_passages
from embedtune.errors import OutputError
from embedtune.evaluation.run import RetrievalTask, compare, evaluate_bm25, retrieval_task
from embedtune.export.run_folder import write_json
from embedtune.progress import Reporter, SilentReporter
from embedtune.report.results import build_results, environment


def evaluate_models(
    model: ModelConfig,
    data: DataConfig,
    *,
    against: str | None = None,
    out: Path | None = None,
    seed: int = 0,
    reporter: Reporter | None = None,
) -> dict[str, Any]:
    """Retrieval metrics of a model, and of a second one if given, with BM25 beside them.

    Args:
        model: `base` is the model to measure.
        data: `test`, `corpus` and `labels`; the corpus searched is the passages of the first two.
        against: hub id or folder of a second model; differences are model minus second.
        out: JSON file to write the results to.
        seed: of the resampling.
        reporter: is told how it goes.

    Raises:
        UserError: the data, a model or the output file can't be used.
    """
    reporter = reporter or SilentReporter()
    if out is not None and not out.absolute().parent.is_dir():
        raise OutputError(f"--out {out}: its folder {out.absolute().parent} does not exist.")
    collection, task, dropped = _test_collection(data)
    encoder = stages.load(model, reporter)
    texts = stages.tokenize(encoder, collection, reporter)
    evaluations = {"model": stages.evaluate(encoder, task, texts, reporter, label=model.base)}
    delta = {}
    if against is not None:
        second = stages.load(replace(model, base=against), reporter)
        texts = stages.tokenize(second, collection, reporter)
        evaluations["against"] = stages.evaluate(second, task, texts, reporter, label=against)
        delta = compare(evaluations["against"], evaluations["model"], seed=seed)
    evaluations["bm25"] = evaluate_bm25(task, collection)
    results = build_results(
        base_model=model.base,
        seed=seed,
        evaluations=evaluations,
        delta=delta,
        against_model=against,
        data={
            "test_queries": len(task.query_ids),
            "corpus_passages": len(task.passage_ids),
            "dropped": dropped,
        },
        environment=environment(encoder.device, encoder.source.precision),
    )
    if out is not None:
        write_json(out, results)
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
