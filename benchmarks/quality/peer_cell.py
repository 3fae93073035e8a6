"""A peer's cell: trained by a process of its own, measured by `embedtune eval` on the test of the cell it is like."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from benchmarks.quality.cell import Cell, Store
from benchmarks.quality.commands import CommandFailedError, Commands, installed_command, own_command
from embedtune.config import TrainConfig
from embedtune.config_file import load_toml
from embedtune.export.run_folder import write_json

MODEL, TEST, TRAINED, MEASURED = "model", "test", "train.json", "eval.json"
"""What lies in a peer's folder: its model, the test as a BEIR folder, the facts of its training, its measurement."""
TOLERANCE = {"fp32": 1e-3}
"""How far the base's NDCG@10 may be from that in the other cell, by precision."""
HALF_TOLERANCE = 5e-3

_METRIC = "ndcg@10"


def run_peer(cell: Cell, store: Store, commands: Commands) -> None:
    """Train it, measure it, and write its `results.json`.

    Raises:
        CommandFailedError: one of the two failed, or they were not measured on the same test.
    """
    assert cell.like is not None
    source, folder, log = store.folder(cell.like), store.folder(cell), store.log(cell)
    commands.run([*own_command("benchmarks.quality.peer_training"), str(source.root), str(folder.root)], log)
    config = load_toml(source.config)
    commands.run([*installed_command(), "eval", *_eval_words(config, folder.root)], log)
    measured, trained = (_read(folder.root / name) for name in (MEASURED, TRAINED))
    ours = store.results(cell.like)
    check_same_test(ours, measured, config)
    write_json(folder.results, _results(ours, measured, trained))


def check_same_test(ours: Mapping[str, Any], measured: Mapping[str, Any], config: TrainConfig) -> None:
    """Whether the peer was measured as the other cell was: as many questions and passages, and the same base.

    The base is left out where a run has prompts of its own, which `embedtune eval` can't be told.

    Raises:
        CommandFailedError: it was not.
    """
    for count in ("test_queries", "corpus_passages"):
        one, other = ours["data"][count], measured["data"][count]
        if one != other:
            raise CommandFailedError(f"not the same test: {count} is {one:,} in the other cell and {other:,} here")
    if config.model.query_prompt is None and config.model.passage_prompt is None:
        one, other = ours["base"][_METRIC], measured["against"][_METRIC]
        if abs(one - other) > TOLERANCE.get(config.model.precision, HALF_TOLERANCE):
            raise CommandFailedError(
                f"not the same test: the base's {_METRIC} is {one:.4f} in the other cell and {other:.4f} here"
            )


def _eval_words(config: TrainConfig, folder: Path) -> list[str]:
    model, forgetting = config.model, config.evaluation.forgetting
    return [
        str(folder / MODEL),
        *("--test", str(folder / TEST)),
        *("--against", model.base),
        *(("--forgetting", *forgetting) if forgetting else ()),
        *(("--max-length", str(model.max_length)) if model.max_length is not None else ()),
        *("--precision", model.precision),
        *("--device", model.device),
        *("--seed", str(config.output.seed)),
        *("--out", str(folder / MEASURED)),
        *(("--trust-remote-code",) if model.trust_remote_code else ()),
    ]


def _results(ours: Mapping[str, Any], measured: Mapping[str, Any], trained: Mapping[str, Any]) -> dict[str, Any]:
    """In the form of a training run's, as far as there is something to say."""
    return {
        **{key: ours[key] for key in ("schema", "embedtune", "seed", "base_model", "method", "data", "bm25")},
        "base": measured["against"],
        "tuned": measured["model"],
        **{key: measured[key] for key in ("delta", "forgetting", "environment") if key in measured},
        "train": trained["train"],
        "peer": {key: value for key, value in trained.items() if key != "train"},
    }


def _read(path: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return found
