"""Measure a finished model on a test file."""

from __future__ import annotations

from collections.abc import Sequence
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
from embedtune.evaluation.run import RetrievalTask, compare, evaluate_hybrid, retrieval_task, task_groups
from embedtune.export.run_folder import write_json
from embedtune.progress import Reporter, SilentReporter
from embedtune.report.results import build_results, comparisons, environment


def evaluate_models(
    model: ModelConfig,
    data: DataConfig,
    *,
    against: Sequence[str] = (),
    out: Path | None = None,
    seed: int = 0,
    reporter: Reporter | None = None,
) -> dict[str, Any]:
    """Retrieval metrics of a model, and of others if given, with BM25 and the hybrid of both beside them.

    Args:
        model: `base` is the model to measure.
        data: `test`, `corpus` and `labels`; the corpus searched is the passages of the first two.
        against: hub ids or folders of further models; differences are model minus further, "delta" that to the first.
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
    others = stages.other_models(model, against)
    stages.check_loadable(others)
    encoder = stages.load(model, reporter)
    texts = stages.tokenize(encoder, collection, reporter)
    measured = stages.evaluate(encoder, task, texts, reporter, label=model.base)
    further = stages.evaluate_others(others, task, collection, reporter)
    bm25 = stages.evaluate_bm25(task, collection, reporter)
    first, groups_Q = next(iter(further), None), task_groups(task)
    word_search = {"bm25": bm25, "hybrid": evaluate_hybrid(task, measured, bm25)}
    results = build_results(
        base_model=model.base,
        seed=seed,
        evaluations={"model": measured, **({"against": further[first]} if first else {}), **word_search},
        delta=compare(further[first], measured, seed=seed, groups_Q=groups_Q) if first else {},
        against_model=first,
        **comparisons(measured, word_search, further, groups_Q=groups_Q, seed=seed),
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
