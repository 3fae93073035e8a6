"""What `results.json` says of a run's data and of its training, as plain values."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, fields
from typing import Any

from torch import nn

from embedtune.config import LossConfig, ModelConfig
from embedtune.data.collection import Collection, Pairs
from embedtune.data.prepare import Splits
from embedtune.data.tokens import Texts, length_statistics
from embedtune.evaluation.run import RetrievalTask
from embedtune.models.encoder import Encoder
from embedtune.models.hardware import peak_memory_bytes
from embedtune.models.source import looks_like_a_folder
from embedtune.training.objective import WithScale
from embedtune.training.plan import Plan
from embedtune.training.reached import Reached


def data_facts(splits: Splits) -> dict[str, Any]:
    """The section "data": how much there was, what was left out and why; what there is to test on is beside it."""
    near = splits.near_duplicates
    return {
        **{f"{name}_pairs": len(pairs) for name, pairs in splits.pairs.items()},
        "dropped": splits.dropped,
        "leaks": asdict(splits.leaks),
        **({} if near is None else {"near_duplicates": near.facts()}),
    }


def task_facts(test: RetrievalTask, texts: Texts, encoder: Encoder) -> dict[str, Any]:
    """The part of it that a test set alone has, and what the encoder reads of the texts."""
    return {
        "test_queries": len(test.query_ids),
        "corpus_passages": len(test.passage_ids),
        "lengths": {
            "unit": "tokens",
            "limit": encoder.max_length,
            "queries": length_statistics(texts.queries),
            "passages": length_statistics(texts.passages),
        },
        "truncated_passages": texts.passages.truncated,
    }


def graded_facts(pairs: Pairs, collection: Collection, texts: Texts, encoder: Encoder) -> dict[str, Any]:
    """As `task_facts`, of graded pairs."""
    tables = {"sentences": texts.passages}
    if not collection.sentences:
        tables = {"queries": texts.queries, "passages": texts.passages}
    return {
        "test_pairs": len(pairs),
        "lengths": {
            "unit": "tokens",
            "limit": encoder.max_length,
            **{name: length_statistics(table) for name, table in tables.items()},
        },
        "truncated_passages": texts.passages.truncated,
    }


def hub_revisions(
    base: ModelConfig, others: Mapping[str, ModelConfig], data: Mapping[str, str | None]
) -> dict[str, Any]:
    """Commits of what came from the Hub: "base", "against" and "data"; empty if nothing did.

    Args:
        base: the model, with its commit as the revision.
        others: further models by their names, likewise.
        data: commits by the option that named the data set.
    """
    against = {name: model.revision for name, model in others.items() if _from_hub(model)}
    known = {name: commit for name, commit in data.items() if commit}
    found = {"base": base.revision if _from_hub(base) else None, "against": against, "data": known}
    return {"revisions": kept} if (kept := {name: value for name, value in found.items() if value}) else {}


def _from_hub(model: ModelConfig) -> bool:
    return not looks_like_a_folder(model.base)


def train_facts(reached: Reached, plan: Plan, metric: str, encoder: Encoder) -> dict[str, Any]:
    """The section "train": steps, speed, memory and curves of all trainings as one, and what each of them reached."""
    return {
        "steps": reached.steps,
        "best_step": reached.best_step,
        "improved": reached.best_step > 0,
        "members": [
            {
                "steps": member.step,
                "best_step": member.best_step,
                "best_metric": member.best_metric,
                "kept": number in reached.kept,
            }
            for number, member in enumerate(reached.members)
        ],
        "batch_size": plan.batch_size,
        "phases": [asdict(phase) for phase in plan.phases],
        "metric": metric,
        "pairs": reached.pairs,
        "tokens": reached.tokens,
        "seconds": reached.seconds,
        "pairs_per_second": reached.pairs / reached.seconds,
        "tokens_per_second": reached.tokens / reached.seconds,
        "peak_memory_bytes": peak_memory_bytes(encoder.device),
        "trainable_parameters": reached.trainable,
        "total_parameters": reached.total,
        "loss": reached.losses,
        "dev": reached.evaluations,
    }


def loss_facts(loss: LossConfig, model: nn.Module) -> dict[str, Any]:
    """The section "loss": what is not as by default, and the scale that the saved weights were trained with.

    Args:
        loss: of the run.
        model: what was trained, with the weights that are saved.
    """
    given = {one.name: getattr(loss, one.name) for one in fields(loss) if getattr(loss, one.name) != one.default}
    plain = {name: list(value) if isinstance(value, tuple) else value for name, value in given.items()}
    return {**plain, "scale": model.scale().item() if isinstance(model, WithScale) else loss.scale}
