"""The trainings of a run, as its results have them."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import accumulate
from typing import Any, NamedTuple


class Member(NamedTuple):
    """One of them; steps are counted on from one to the next."""

    first_step: int
    """Steps before it."""
    last_step: int
    best_step: int
    best_metric: float
    """The dev metric at its best step."""
    kept: bool
    """Whether its weights have a part in the model."""


def members_of(train: Mapping[str, Any]) -> list[Member]:
    """Those of the section "train" of `results.json`; none where it does not say."""
    found = train.get("members") or []
    ends = list(accumulate((member["steps"] for member in found), initial=0))
    return [
        Member(first, last, first + member["best_step"], member["best_metric"], member["kept"])
        for member, first, last in zip(found, ends, ends[1:], strict=False)
    ]


def kept_members(train: Mapping[str, Any]) -> list[Member]:
    """Those whose weights, or their mean, the model has."""
    return [member for member in members_of(train) if member.kept]


def averaged_from(train: Mapping[str, Any]) -> int | None:
    """The step from which on the kept weights are the mean of all steps'; None if they are those of one step."""
    begun = [phase["first_step"] for phase in train.get("phases", []) if phase.get("averaged")]
    kept = [member.best_step - member.first_step for member in kept_members(train)]
    return begun[0] + 1 if begun and any(step > begun[0] for step in kept) else None
