"""Where a model's files lie, and that reading them runs no code.

A hub id becomes the folder of one commit in the Hub's cache: all of a run then reads the same files, pickles and code
are not even downloaded, and no library asks the Hub for more.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path

from huggingface_hub import HfApi, snapshot_download
from huggingface_hub.errors import HTTPError  # type: ignore[attr-defined]  # of httpx or of httpx2
from sentence_transformers import SentenceTransformer
from sentence_transformers.util import ORIGINAL_TRANSFORMER_MODELS

from embedtune.config import ModelConfig
from embedtune.errors import ModelError
from embedtune.paths import expanded

HUB_FILES = ("*.json", "*model*.safetensors", "*.txt", "*.model", "*.jinja", "*.tiktoken", "*.codes", "*.bpe", "*.md")
"""What is taken of a repository: weights as safetensors, settings and vocabularies."""
HUB_CODE = ("*.py",)
"""Only with `--trust-remote-code`."""
NOT_TAKEN = ("onnx/*", "openvino/*", "original/*", "checkpoint*/*", ".*")
PICKLED = {
    "pytorch_model.bin": ("model.safetensors", "model.safetensors.index.json"),
    "pytorch_model.bin.index.json": ("model.safetensors", "model.safetensors.index.json"),
    "adapter_model.bin": ("adapter_model.safetensors",),
}
"""Weights that the libraries would unpickle, and what they read instead if it lies beside them."""


def pin(config: ModelConfig) -> ModelConfig:
    """The config with the commit of a hub model as its revision; that of a folder as it is.

    Raises:
        ModelError: as `find_folder`.
    """
    return config if looks_like_a_folder(config.base) else replace(config, revision=find_folder(config).name)


def split_revision(name: str) -> tuple[str, str | None]:
    """The hub id and the revision of OWNER/NAME@REVISION; a folder, or an id without a revision, as it is."""
    base, _, revision = name.partition("@")
    if not revision or os.path.exists(expanded(name)) or looks_like_a_folder(base):
        return name, None
    return base, revision


def named(config: ModelConfig, name: str) -> ModelConfig:
    """The config of another model: a folder, or a hub id with or without the revision, `OWNER/NAME@REVISION`."""
    base, revision = split_revision(name)
    return replace(config, base=base, revision=revision)


def pinned_name(config: ModelConfig) -> str:
    """What names a pinned model again, from any folder: OWNER/NAME@COMMIT, or the full path."""
    if looks_like_a_folder(config.base):
        return str(expanded(config.base).absolute())
    return f"{config.base}@{config.revision}"


def find_folder(config: ModelConfig) -> Path:
    """The folder of a model, of the Hub's cache if it is a hub id.

    Raises:
        ModelError: there is no such model, it can't be reached, it is an adapter, or its weights are pickled.
    """
    model = config.base
    folder = expanded(model) if looks_like_a_folder(model) else _snapshot(config)
    _check_holds_a_model(model, folder)
    _check_safetensors(model, folder)
    return folder


def looks_like_a_folder(model: str) -> bool:
    return os.path.exists(expanded(model)) or model.startswith((".", "/", "~")) or model.count("/") > 1


def repository(model: str) -> str:
    """OWNER/NAME of a hub id; names without an owner are Sentence Transformers' own, as in that library."""
    organisation = SentenceTransformer.default_huggingface_organization
    if "/" in model or not organisation or model.lower() in ORIGINAL_TRANSFORMER_MODELS:
        return model
    return f"{organisation}/{model}"


def _snapshot(config: ModelConfig) -> Path:
    repo = repository(config.base)
    taken = [*HUB_FILES, *(HUB_CODE if config.trust_remote_code else ())]
    try:
        found = snapshot_download(repo, revision=config.revision, allow_patterns=taken, ignore_patterns=list(NOT_TAKEN))
        folder = Path(found)
        if not any(folder.rglob("*.safetensors")) and not _pickled(folder):
            _check_twins(config.base, HfApi().list_repo_files(repo, revision=folder.name))
    except (OSError, ValueError, HTTPError) as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise ModelError(
            f"'{config.base}' could not be loaded from the hub: {reason}\n"
            "Check the id and the network, or give a folder that holds the model:  --base FOLDER"
        ) from error
    return folder


def _check_holds_a_model(model: str, folder: Path) -> None:
    for part in (folder, *_module_folders(folder)):
        if (part / "adapter_config.json").is_file() and not (part / "config.json").is_file():
            raise _is_an_adapter(part)
    if not (folder / "config.json").is_file() and not (folder / "modules.json").is_file():
        found = "it does not exist" if not folder.exists() else "it holds no config.json"
        raise ModelError(
            f"'{model}' is not a model folder: {found}.\n"
            "Expected a Hugging Face or Sentence Transformers folder, or a hub id like "
            "sentence-transformers/all-MiniLM-L12-v2."
        )


def _is_an_adapter(folder: Path) -> ModelError:
    """Sentence Transformers loads it with the model that it belongs to; but a second adapter can't be put on the first,
    and weights trained beneath it would not be saved.
    """
    base = read_json(folder / "adapter_config.json").get("base_model_name_or_path")
    explained = "" if base else ", BASE being the model it belongs to"
    return ModelError(
        f"'{folder}' holds an adapter, not a model.\n"
        f"Type:  --base {base or 'BASE'} --start-adapter {folder}   to go on training it{explained}."
    )


def _check_safetensors(model: str, folder: Path) -> None:
    """Refuse what the libraries would unpickle, even if only with torch's `weights_only`."""
    _check_twins(model, _pickled(folder))
    for part in _parts(folder):
        named = [read_json(part / "config.json").get("transformers_weights")]
        index = read_json(part / "model.safetensors.index.json").get("weight_map")
        named += list(index.values()) if isinstance(index, dict) else []
        for file in named:
            if file is not None and not str(file).endswith(".safetensors"):
                raise ModelError(
                    f"'{model}': {part} says that its weights are in {file!r}; expected a name that ends in "
                    f".safetensors.\n{_how_to_convert(model)}"
                )


def _check_twins(model: str, names: Iterable[str]) -> None:
    """Raise if there are pickled weights among the names, and nothing beside them to read instead."""
    present = set(names)
    for name in sorted(present):
        place, _, file = name.rpartition("/")
        twins = [f"{place}/{twin}".lstrip("/") for twin in PICKLED.get(file, ())]
        if twins and not present.intersection(twins):
            raise ModelError(
                f"'{model}' holds {name} and no {twins[0]}: a pickle is never read here, as it could run code.\n"
                f"Expected weights as safetensors.\n{_how_to_convert(model)}"
            )


def _how_to_convert(model: str) -> str:
    name = expanded(model).name + "-safetensors"
    code = f"from sentence_transformers import SentenceTransformer as M; M({model!r}).save_pretrained({name!r})"
    return f'If you trust where it comes from, convert it once and give the new folder:\n  python -c "{code}"'


def _pickled(folder: Path) -> set[str]:
    """Names of pickled weights and of what may lie beside them, in the folder and below."""
    wanted = {*PICKLED, *(twin for twins in PICKLED.values() for twin in twins)}
    found = {
        (part / name).relative_to(folder).as_posix()
        for part in _parts(folder)
        for name in wanted
        if (part / name).is_file()
    }
    return found if any(name.rpartition("/")[2] in PICKLED for name in found) else set()


def _parts(folder: Path) -> Iterator[Path]:
    """The folder and those below it, modules of a router among them; no checkpoints of a training."""
    yield folder
    for below in folder.rglob("*"):
        names = below.relative_to(folder).parts
        if below.is_dir() and not names[0].startswith((".", "checkpoint")):
            yield below


def _module_folders(folder: Path) -> list[Path]:
    """Those that a Sentence Transformers folder lists; what is wrong with its list is said when it is loaded."""
    try:
        modules = json.loads((folder / "modules.json").read_text(encoding="utf-8"))
        return [folder / module["path"] for module in modules]
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return []


def read_json(file: Path) -> dict[str, object]:
    """The object in a file; empty if there is none, or something else."""
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return content if isinstance(content, dict) else {}
