"""The head of a model card: YAML that the Hugging Face Hub reads.

What the base model's own card says of language and licence is taken over; what nobody has said is left out.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from huggingface_hub import EvalResult, ModelCard, ModelCardData, try_to_load_from_cache
from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import validate_repo_id  # type: ignore[attr-defined]  # public, says its documentation

from embedtune.config import METRICS
from embedtune.paths import expanded
from embedtune.report.goals import SIMILARITY, goal

Part = Literal["model", "adapter"]

_PLAIN = re.compile(r"[\w.+\-]{1,64}")
_CACHED = re.compile(r"models--(?P<owner>[^/\\]+?)--(?P<name>[^/\\]+)")
"""A folder of the Hub's cache."""
_NAMELESS = ("", ".", "..", "model", "adapter", "checkpoint")
"""Last parts of a path that say nothing of what lies there; the part before them may be a user's name."""


def hub_id(source: str) -> str | None:
    """`owner/name` if the source is a model of the Hub, or its folder in the Hub's cache; None for other folders."""
    cached = _CACHED.search(source)
    name = f"{cached['owner']}/{cached['name']}" if cached else source
    if name.count("/") != 1:
        return None
    try:
        validate_repo_id(name)
    except HFValidationError:
        return None
    return name if cached or not Path(source).exists() else None


def shown_name(source: str) -> str | None:
    """The Hub's id, or a local folder's own name without the path to it; None if that says nothing."""
    if name := hub_id(source):
        return name
    last = re.split(r"[\\/]", source.rstrip("\\/"))[-1]
    return None if last.lower() in _NAMELESS else last


def dataset_id(data: Mapping[str, Any]) -> str | None:
    """`owner/name` of the data set on the Hub that was trained on; None for files and folders.

    Args:
        data: the section [data] of the run's config.
    """
    source = re.split("[:@]", str(data.get("train", "")))[0]
    # A file of an earlier run may be gone; one of the forms that are read from files is no name of a data set.
    is_file = re.search(r"\.(jsonl?|csv|tsv|parquet)(\.gz)?$", source)
    return None if is_file else hub_id(source)


def base_metadata(base: str, revision: str | None = None) -> dict[str, Any]:
    """What the base model's own card says in its head, from its folder or the Hub's cache; empty if there is none.

    Args:
        base: hub id or folder.
        revision: branch, tag or commit of a hub model.
    """
    try:
        folder = expanded(base)
        file = folder / "README.md" if folder.is_dir() else try_to_load_from_cache(base, "README.md", revision=revision)
        if not isinstance(file, str | Path):  # not in the cache, or known not to exist
            return {}
        content = Path(file).read_text(encoding="utf-8")
        return dict(ModelCard(content, ignore_metadata_errors=True).data.to_dict())  # type: ignore[no-untyped-call]
    except Exception:  # a card is written by hand; whatever is wrong with it is no reason for a run to fail
        return {}


def licence(metadata: Mapping[str, Any]) -> str | None:
    """The licence that a card names."""
    value = metadata.get("license")
    return value if isinstance(value, str) and _PLAIN.fullmatch(value) else None


def card_data(
    results: Mapping[str, Any],
    config: Mapping[str, Any],
    *,
    title: str,
    part: Part,
    base: Mapping[str, Any],
) -> ModelCardData:
    """The head of the card.

    Args:
        results: the content of `results.json`.
        config: the sections of the run's config.
        title: of the card.
        part: which folder of the run the card describes.
        base: what `base_metadata` gives.
    """
    base_id, dataset = hub_id(str(results["base_model"])), dataset_id(config.get("data", {}))
    tags = ["sentence-transformers", "sentence-similarity", "feature-extraction"]
    tags += ["embedtune"] if goal(results) is SIMILARITY else ["retrieval", "embedtune"]
    tags += ["lora"] if part == "adapter" else []
    evaluations = _evaluations(results, dataset)
    return ModelCardData(
        language=_languages(base),
        license=licence(base),
        license_name=_text(base.get("license_name")) if licence(base) == "other" else None,
        license_link=_text(base.get("license_link")) if licence(base) == "other" else None,
        library_name="peft" if part == "adapter" else "sentence-transformers",
        pipeline_tag="sentence-similarity",
        tags=tags,
        base_model=base_id,
        base_model_relation=None if base_id is None else {"adapter": "adapter", "model": "finetune"}[part],
        datasets=None if dataset is None else [dataset],
        metrics=[evaluation.metric_type for evaluation in evaluations] or None,
        model_name=title if evaluations else None,
        eval_results=evaluations or None,
    )


def _evaluations(results: Mapping[str, Any], dataset: str | None) -> list[EvalResult]:
    """The tuned model's metrics, under the names that Sentence Transformers' own cards give them."""
    tuned = results.get("tuned", {})
    if goal(results) is SIMILARITY:
        return [
            EvalResult(
                task_type="semantic-similarity",
                task_name="Semantic Similarity",
                dataset_type=dataset or "unknown",
                dataset_name="held-out pairs",
                dataset_split="test",
                metric_type=f"{metric}_cosine",
                metric_name=f"{metric.capitalize()} Cosine",
                metric_value=tuned[metric],
            )
            for metric in SIMILARITY.shown
            if metric in tuned
        ]
    return [
        EvalResult(
            task_type="information-retrieval",
            task_name="Information Retrieval",
            dataset_type=dataset or "unknown",
            dataset_name="held-out questions",
            dataset_split="test",
            metric_type=f"cosine_{metric}",
            metric_name=f"Cosine {metric.capitalize()}",
            metric_value=tuned[metric],
        )
        for metric in METRICS
        if metric in tuned
    ]


def _languages(base: Mapping[str, Any]) -> list[str] | None:
    given = base.get("language")
    languages = [given] if isinstance(given, str) else given if isinstance(given, list) else []
    # YAML reads the code of Norwegian as "false"; a card that has it so has told nothing.
    return [code for code in languages if isinstance(code, str) and _PLAIN.fullmatch(code)] or None


def _text(value: object) -> str | None:
    return value if isinstance(value, str) else None
