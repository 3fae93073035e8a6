"""The ways of ranking that results compare: which of them the report is about, and what they are called."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import PurePath
from typing import Any

NAMES = {
    "base": "Base",
    "against": "Against",
    "tuned": "Tuned",
    "model": "Model",
    "bm25": "BM25",
    "hybrid": "Hybrid",
}
"""Key in the results to the name in the report, in the order of its columns."""


def present_systems(results: Mapping[str, Any]) -> list[str]:
    """The keys of `NAMES` that there are metrics of."""
    return [key for key in NAMES if results.get(key)]


def lead(results: Mapping[str, Any]) -> str:
    """Key of the model that the results are about: "tuned" after training, "model" in an evaluation."""
    return "tuned" if "tuned" in results else "model"


def lead_phrase(results: Mapping[str, Any]) -> str:
    return "the tuned model" if lead(results) == "tuned" else "the model"


def reference(results: Mapping[str, Any]) -> str | None:
    """Key of the model that the lead's "delta" is from; None if there is none."""
    if not results.get("delta"):
        return None
    return "base" if lead(results) == "tuned" else "against"


def reference_phrase(results: Mapping[str, Any]) -> str:
    """The reference in a sentence: the base model, or the name of the other model."""
    if reference(results) == "base":
        return "the base model"
    return short_model_name(results.get("against_model") or "the other model")


def further_models(results: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """Entries of the models that have no column of their own: in an evaluation the first one has."""
    return list(results.get("further") or [])["against" in results :]


def short_model_name(model: str) -> str:
    """A hub id as it is; of a folder's path the last two parts. What would turn the text around it is left out."""
    path = PurePath(model)
    name = "/".join(path.parts[-2:]) if path.is_absolute() else model
    return "".join(character for character in name if character.isprintable())
