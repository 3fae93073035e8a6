"""Likely label errors: passages ranked first that no label calls right, though they look it.

Shapes: `Q` queries, `S` suspects.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from embedtune.atomic import replacing
from embedtune.data.collection import Collection, IdArray
from embedtune.evaluation.metrics import NO_PASSAGE, FloatArray
from embedtune.evaluation.rankings import NOT_RANKED, BoolArray, ranks_of, right_passages
from embedtune.evaluation.run import Evaluation, RetrievalTask

MOST = 200
"""Suspects listed: what a person can look through in an hour or two."""
NOT_WITNESSES = ("hybrid",)
"""Systems made of others that are asked already."""


@dataclass(frozen=True, kw_only=True)
class Suspect:
    """A query whose label may be wrong or incomplete; the fields are those of a line of `suspects.jsonl`."""

    query: str
    positive: str
    """The passage labelled right; of several, the one that the judged system ranks best."""
    candidate: str
    """The passage that the judged system ranks first, without a label."""
    scores: dict[str, float | None]
    """The judged system's scores of "positive" (None if it does not rank it) and "candidate"."""
    found_by: tuple[str, ...]
    """Systems that rank the candidate above the positive, the judged one first."""
    label: str = ""
    """For the user: "" or "no", "also" or "instead"."""


def find_suspects(
    collection: Collection,
    task: RetrievalTask,
    evaluations: Mapping[str, Evaluation],
    hits_of: Mapping[str, BoolArray],
    *,
    judged: str,
    reference: str | None,
) -> list[Suspect]:
    """PLACEHOLDER"""
    evaluation = evaluations[judged]
    candidates_Q = evaluation.ranked_ids[:, 0]
    right_Q = right_passages(task, evaluation, hits_of[judged])
    others = [name for name in (reference, *evaluations) if name not in (None, judged, *NOT_WITNESSES)]
    witnesses = dict.fromkeys([judged, *(name for name in others if name is not None)])
    votes = {name: _votes(evaluations[name], candidates_Q, right_Q) for name in witnesses}
    suspicion_Q = np.mean(list(votes.values()), axis=0)
    open_Q = ~hits_of[judged][:, 0] & (candidates_Q != NO_PASSAGE)
    order = np.argsort(-np.round(suspicion_Q, 12), kind="stable")
    chosen_S = [int(row) for row in order if open_Q[row]][:MOST]
    return []


def write_suspects(path: Path, suspects: Sequence[Suspect]) -> None:
    """Write one JSON object a line, the most suspicious first: a whole file or none."""
    with replacing(path) as unfinished, unfinished.open("w", encoding="utf-8", newline="\n") as file:
        file.writelines(json.dumps(suspect_json(suspect), ensure_ascii=False) + "\n" for suspect in suspects)


def suspect_json(suspect: Suspect) -> dict[str, Any]:
    """A suspect as plain JSON values."""
    return {**asdict(suspect), "found_by": list(suspect.found_by)}
