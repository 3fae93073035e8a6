"""A run's settings as somebody else can use them: nothing of the machine or its folders in them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import PurePosixPath, PureWindowsPath
from typing import Any

import tomli_w

from embedtune.report.card.metadata import dataset_id, hub_id, shown_name

_OF_THE_MACHINE = {
    # That code which comes with the model may run has to be typed by whoever runs it.
    "model": ("device", "precision", "memory", "trust_remote_code"),
    "training": ("micro_batch_tokens",),
    "output": ("out", "resume"),
}
_OF_THE_FILES = ("anchor_column", "positive_column", "negative_columns", "score_column")
_OWN_FILES = {"train": "PAIRS.jsonl", "test": "TEST.jsonl", "dev": "DEV.jsonl", "corpus": "CORPUS.jsonl"}


def portable_toml(config: Mapping[str, Any]) -> str:
    """TOML that `embedtune train --config` reads.

    Sources of the Hub stay as they are; files and folders become names to fill in, and their columns go with them.
    What else names a place on this machine is left out.

    Args:
        config: the sections of a run's config.
    """
    sections = {
        name: {key: value for key, value in values.items() if key not in _OF_THE_MACHINE.get(name, ())}
        for name, values in config.items()
    }
    data, model, loss, adapter = (sections.get(name, {}) for name in ("data", "model", "loss", "adapter"))
    own = [key for key in _OWN_FILES if data.get(key) and not dataset_id({"train": data[key]})]
    for key in own:
        data[key] = _OWN_FILES[key]
    if own:
        for key in _OF_THE_FILES:
            data.pop(key, None)
    if data.get("labels"):
        data["labels"] = "LABELS.jsonl"
    if "base" in model and hub_id(model["base"]) is None:
        model["base"] = shown_name(model["base"]) or "BASE"
    for key in ("teacher", "guide"):
        if loss.get(key) and loss[key] != "self" and hub_id(loss[key]) is None:
            loss[key] = shown_name(loss[key]) or key.upper()
    if adapter.get("start_adapter"):
        adapter["start_adapter"] = shown_name(adapter["start_adapter"]) or "START_ADAPTER"
    public = {name: _without_paths(values) for name, values in sections.items()}
    return tomli_w.dumps({name: values for name, values in public.items() if values})


def _without_paths(values: Mapping[str, Any]) -> dict[str, Any]:
    lists = {key: [item for item in value if not _is_path(item)] for key, value in values.items() if _is_list(value)}
    return {key: lists.get(key, value) for key, value in values.items() if not _is_path(value)}


def _is_list(value: Any) -> bool:
    return isinstance(value, (list, tuple))


def _is_path(value: Any) -> bool:
    if not isinstance(value, str):
        return False
    absolute = PurePosixPath(value).is_absolute() or PureWindowsPath(value).is_absolute()
    return absolute or value.startswith(("~", "./", "../", ".\\", "..\\"))


def loss_in_words(name: str, loss: Mapping[str, Any], found: Mapping[str, Any]) -> str:
    """What was made smaller, for the card.

    Args:
        name: what it is called.
        loss: the section [loss] of the run's config.
        found: the results' section "loss".
    """
    parts = [name]
    if scale := found.get("scale", loss.get("scale")):
        parts.append(f"scale {scale:.3g}{', learned' if loss.get('learn_scale') else ''}")
    if loss.get("distill", "none") != "none":
        teacher = shown_name(loss.get("teacher") or "") or "given scores"
        parts.append(f"distillation ({loss['distill']}) from {teacher}, weight {loss['distill_weight']:g}")
    if guide := loss.get("guide"):
        whose = "the model itself" if guide == "self" else shown_name(guide) or "another encoder"
        parts.append(f"negatives that look like answers left out, as {whose} tells")
    if sizes := loss.get("matryoshka"):
        parts.append(f"at sizes {', '.join(map(str, sizes))} (Matryoshka)")
    return "; ".join(parts)
