"""Where a model helps and where it hurts, in one call."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from embedtune.data.collection import Collection
from embedtune.evaluation.breakdown import breakdown
from embedtune.evaluation.cases import query_cases
from embedtune.evaluation.excerpt import excerpt
from embedtune.evaluation.rankings import hits, recall_curve
from embedtune.evaluation.run import Evaluation, RetrievalTask, Roles
from embedtune.evaluation.suspects import Suspect, find_suspects, suspect_json

SUSPECTS_FILE = "suspects.jsonl"
EXAMPLES = 5
"""Suspects shown in `results.json`."""


def analyse(
    collection: Collection,
    task: RetrievalTask,
    evaluations: Mapping[str, Evaluation],
    roles: Roles,
    *,
    seed: int,
) -> tuple[dict[str, Any], list[Suspect]]:
    """The sections "recall_curve", "breakdown", "queries" and "suspects" of `results.json`, and all suspects.

    The suspects are for `write_suspects`, which writes them whole; the section has the first five, shortened.

    Args:
        collection: where the task's ids are from.
        task: what was asked.
        evaluations: system name, such as "base", "tuned" and "bm25", to what it reached on the task.
        roles: the system looked at, and the one it is compared with. Without the second, "breakdown" has no "delta",
            and "queries" has the "worst" queries instead of gains and regressions.
        seed: of the resampling.

    Raises:
        ValueError: a name is not among the evaluations, or an evaluation is of other queries than the task's.
    """
    for name in (roles.judged, roles.reference):
        if name is not None and name not in evaluations:
            raise ValueError(f"got the system {name!r}, expected one of {', '.join(map(repr, evaluations))}")
    hits_of = {name: hits(task, evaluation) for name, evaluation in evaluations.items()}
    suspects = find_suspects(collection, task, evaluations, hits_of, roles)
    sections = {
        "recall_curve": recall_curve(task, hits_of),
        "breakdown": breakdown(collection, task, evaluations, roles, seed=seed),
        "queries": query_cases(collection, task, evaluations, hits_of, roles),
        "suspects": {
            "count": len(suspects),
            "file": SUSPECTS_FILE,
            "examples": [suspect_json(_shortened(suspect)) for suspect in suspects[:EXAMPLES]],
        },
    }
    return sections, suspects


def _shortened(suspect: Suspect) -> Suspect:
    return replace(
        suspect,
        query=excerpt(suspect.query),
        positive=excerpt(suspect.positive),
        candidate=excerpt(suspect.candidate),
    )
