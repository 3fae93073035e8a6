"""`results.json`, schema version 1: the facts of a run, from which every report is made."""

from __future__ import annotations

import importlib.metadata
import platform
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch

from embedtune.data.collection import IdArray
from embedtune.evaluation.run import Evaluation, compare
from embedtune.evaluation.similarity import Similarity
from embedtune.evaluation.stats import Difference

SCHEMA = 1
_PACKAGES = ("torch", "transformers", "sentence-transformers", "peft", "accelerate", "tokenizers", "numpy")


def build_results(
    *,
    base_model: str,
    seed: int,
    evaluations: Mapping[str, Evaluation | Similarity],
    delta: Mapping[str, Difference],
    **sections: Any,
) -> dict[str, Any]:
    """The document of a run.

    Args:
        base_model: what the run started from.
        seed: of the run.
        evaluations: by the key they get, such as "base", "tuned" and "bm25".
        delta: tuned minus base by metric.
        sections: further keys with plain JSON values: "method", "data", "train", …
    """
    return {
        "schema": SCHEMA,
        "embedtune": importlib.metadata.version("embedtune"),
        "seed": seed,
        "base_model": base_model,
        **sections,
        **{name: evaluation.means for name, evaluation in evaluations.items()},
        "delta": differences_json(delta),
    }


def comparisons(
    system: Evaluation,
    others: Mapping[str, Evaluation],
    further: Mapping[str, Evaluation],
    *,
    groups_Q: IdArray,
    seed: int,
) -> dict[str, Any]:
    """The sections "delta_to", "further" and "test": how a system does beside the others.

    Args:
        system: what is compared, the tuned model or the one to measure.
        others: by the key that they have in the document, such as "bm25" and "hybrid".
        further: other models by name.
        groups_Q: number of each question's group, `RetrievalTask.groups_Q`.
        seed: of the permutations.
    """

    def beyond(other: Evaluation) -> dict[str, Any]:
        return differences_json(compare(other, system, seed=seed, groups_Q=groups_Q))

    return {
        "delta_to": {name: beyond(other) for name, other in others.items()},
        "further": [{"model": name, "metrics": other.means, "delta": beyond(other)} for name, other in further.items()],
        "test": {"groups": len(np.unique(groups_Q))},
    }


def differences_json(differences: Mapping[str, Difference]) -> dict[str, Any]:
    """Differences by metric, as the contract has them."""
    return {metric: difference_json(difference) for metric, difference in differences.items()}


def difference_json(difference: Difference) -> dict[str, Any]:
    """A difference as the contract has it: mean, ci95, p_value, detectable."""
    return {
        "mean": difference.mean,
        "ci95": list(difference.ci95),
        "p_value": difference.p_value,
        "detectable": difference.detectable,
    }


def environment(device: torch.device, precision: str) -> dict[str, Any]:
    """Versions, device and threads."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else platform.processor() or platform.machine()
    return {
        "python": platform.python_version(),
        "platform": platform.platform(),
        **{package: importlib.metadata.version(package) for package in _PACKAGES},
        "device": device.type,
        "device_name": name,
        "precision": precision,
        "threads": torch.get_num_threads(),
    }
