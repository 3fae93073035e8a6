"""What is compared: data sets, variants and seeds, from a TOML file."""

from __future__ import annotations

import re
import sys
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from benchmarks.inputs import DEFAULT_BASE
from embedtune.demo import data_folder, model_folder
from embedtune.errors import ConfigError, brief, quoted

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

PEERS = ("sentence-transformers",)
"""What a variant may be other than `embedtune train`."""
WITHOUT = "-without-"
"""In the name of a variant of an ablation, between the full variant and the part."""

_NAME = re.compile(r"\w[\w.+-]*")
_SOURCES = ("train", "test", "dev", "corpus")


@dataclass(frozen=True, kw_only=True)
class DataSet:
    """What a cell trains and tests on."""

    train: str
    test: str | None = None
    dev: str | None = None
    corpus: str | None = None
    forgetting: tuple[str, ...] = ()
    options: tuple[str, ...] = ()
    """Further words of the command line."""


@dataclass(frozen=True, kw_only=True)
class Variant:
    """A recipe: words of the command line, or a peer with the settings of another variant."""

    options: tuple[str, ...] = ()
    peer: str | None = None
    like: str | None = None
    """The variant whose settings and training rows a peer takes."""


@dataclass(frozen=True, kw_only=True)
class Ablation:
    """The parts of a variant, to be taken away one by one."""

    full: str
    parts: Mapping[str, tuple[str, ...]]
    """Part to the words of the command line that are taken out of the full variant's, or, if they are not among them,
    put behind them."""


@dataclass(frozen=True, kw_only=True)
class Description:
    """Every cell that there is to run: each variant on each data set with each seed."""

    data: Mapping[str, DataSet]
    variants: Mapping[str, Variant]
    """In their order; the others are compared with the first."""
    seeds: tuple[int, ...] = (0, 1, 2)
    base: str = DEFAULT_BASE
    options: tuple[str, ...] = ()
    """Words of the command line of every cell."""
    metric: str = "ndcg@10"
    """Key of `results.json`'s "tuned" that is compared."""
    ablation: Ablation | None = field(default=None)

    @property
    def first(self) -> str:
        """The variant that the others are compared with."""
        return next(iter(self.variants))


def demo_description() -> Description:
    """The demo's data and model, as they come and with one epoch."""
    return Description(
        data={"demo": DataSet(train=str(data_folder()), options=("--test-fraction", "0.25"))},
        variants={"default": Variant(), "one-epoch": Variant(options=("--epochs", "1"))},
        seeds=(0, 1),
        base=str(model_folder()),
    )


def read_description(path: Path) -> Description:
    """The description in a TOML file; files that it names may lie relative to it.

    Raises:
        ConfigError: it can't be read, or has a key or a value that isn't known.
    """
    try:
        document = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ConfigError(f"{path}: not a readable TOML file: {brief(str(error), 300)}") from None
    where = str(path)
    _known(document, ("data", "variant", "ablation", "seeds", "base", "options", "metric"), where)
    data = {
        name: _data_set(values, f"{where}, [data.{name}]", path.parent)
        for name, values in _named(document, "data", where)
    }
    variants = {
        name: _variant(values, f"{where}, [variant.{name}]") for name, values in _named(document, "variant", where)
    }
    description = Description(
        data=data,
        variants=variants,
        seeds=_seeds(document.get("seeds", [0, 1, 2]), where),
        base=_place(_text(document.get("base", DEFAULT_BASE), f"{where}: base"), path.parent),
        options=_words(document.get("options", []), f"{where}: options"),
        metric=_text(document.get("metric", "ndcg@10"), f"{where}: metric"),
        ablation=_ablation(document["ablation"], f"{where}, [ablation]") if "ablation" in document else None,
    )
    return _with_models(description, where)


def ablated(description: Description) -> Description:
    """The full variant first, then one for each of its parts, without it.

    Raises:
        ConfigError: no parts are described.
    """
    ablation = description.ablation
    if ablation is None:
        raise ConfigError(
            "there is no [ablation].\n"
            'Add to the TOML file:  [ablation]  full = "VARIANT"  parts = { NAME = ["--OPTION"] }'
        )
    full = description.variants[ablation.full]
    without = {
        f"{ablation.full}{WITHOUT}{part}": Variant(options=_taken_away(full.options, words))
        for part, words in ablation.parts.items()
    }
    return replace(description, variants={ablation.full: full, **without})


def _taken_away(options: tuple[str, ...], part: tuple[str, ...]) -> tuple[str, ...]:
    for start in range(len(options) - len(part) + 1):
        if options[start : start + len(part)] == part:
            return options[:start] + options[start + len(part) :]
    return options + part


def _data_set(values: Any, where: str, folder: Path) -> DataSet:
    _known(values, (*_SOURCES, "forgetting", "options"), where)
    if "train" not in values:
        raise ConfigError(f"{where}: there is no 'train', the pairs to train on.")
    sources = {key: _place(_text(values[key], f"{where}: {key}"), folder) for key in _SOURCES if key in values}
    forgetting = _words(values.get("forgetting", []), f"{where}: forgetting")
    return DataSet(
        **sources,
        forgetting=tuple(_place(file, folder) for file in forgetting),
        options=_words(values.get("options", []), f"{where}: options"),
    )


def _variant(values: Any, where: str) -> Variant:
    _known(values, ("options", "peer", "like"), where)
    peer, like = values.get("peer"), values.get("like")
    if peer is not None and peer not in PEERS:
        raise ConfigError(f"{where}: peer is {quoted(peer)}, expected one of {', '.join(PEERS)}.")
    if peer is not None and "options" in values:
        raise ConfigError(f"{where}: a peer has no options; it takes the settings of the variant that 'like' names.")
    if peer is None and like is not None:
        raise ConfigError(f"{where}: 'like' is for a peer.")
    return Variant(options=_words(values.get("options", []), f"{where}: options"), peer=peer, like=like)


def _with_models(description: Description, where: str) -> Description:
    """Each peer with the variant that it is like: the first one of embedtune if none is named.

    Raises:
        ConfigError: a variant that is named is none of embedtune's.
    """
    ours = [name for name, variant in description.variants.items() if variant.peer is None]
    if not ours:
        raise ConfigError(f"{where}: every variant is a peer's; expected one at least without 'peer'.")
    variants = dict(description.variants)
    for name, variant in variants.items():
        if variant.peer is not None:
            like = ours[0] if variant.like is None else variant.like
            _one_of(like, ours, f"{where}, [variant.{name}]: like")
            variants[name] = replace(variant, like=like)
    if description.ablation is not None:
        _one_of(description.ablation.full, ours, f"{where}, [ablation]: full")
    return replace(description, variants=variants)


def _ablation(values: Any, where: str) -> Ablation:
    _known(values, ("full", "parts"), where)
    parts = values.get("parts")
    if not isinstance(parts, Mapping) or not parts:
        raise ConfigError(f'{where}: parts is {quoted(parts)}, expected a table of name = ["--option", ...].')
    for part in parts:
        _check_name(part, where)
    return Ablation(
        full=_text(values.get("full"), f"{where}: full"),
        parts={name: _words(words, f"{where}: parts.{name}") for name, words in parts.items()},
    )


def _named(document: Mapping[str, Any], kind: str, where: str) -> list[tuple[str, Any]]:
    tables = document.get(kind)
    if not isinstance(tables, Mapping) or not tables:
        raise ConfigError(f"{where}: there is no [{kind}.NAME] section.")
    for name in tables:
        _check_name(name, f"{where}, [{kind}]")
    return list(tables.items())


def _check_name(name: str, where: str) -> None:
    if not _NAME.fullmatch(name):  # it becomes a folder's
        raise ConfigError(f"{where}: the name is {quoted(name)}, expected letters, digits, '-', '_', '.' and '+'.")


def _known(values: Any, keys: Sequence[str], where: str) -> None:
    if not isinstance(values, Mapping):
        raise ConfigError(f"{where}: got {quoted(values)}, expected a section.")
    if unknown := sorted(set(values) - set(keys)):
        raise ConfigError(f"{where}: unknown key {quoted(unknown[0])}; the keys are {', '.join(keys)}.")


def _seeds(value: Any, where: str) -> tuple[int, ...]:
    if not isinstance(value, list) or not value or not all(type(seed) is int and seed >= 0 for seed in value):
        raise ConfigError(f"{where}: seeds is {quoted(value)}, expected a list such as [0, 1, 2].")
    return tuple(dict.fromkeys(value))


def _words(value: Any, where: str) -> tuple[str, ...]:
    if not isinstance(value, list) or not all(isinstance(word, str) for word in value):
        raise ConfigError(f'{where} is {quoted(value)}, expected a list of texts, such as ["--lr", "1e-3"].')
    return tuple(value)


def _text(value: Any, where: str) -> str:
    if not isinstance(value, str) or not value:
        raise ConfigError(f"{where} is {quoted(value)}, expected a text.")
    return value


def _one_of(name: str, known: Collection[str], where: str) -> None:
    if name not in known:
        raise ConfigError(f"{where} is {quoted(name)}, expected one of {', '.join(known)}.")


def _place(source: str, folder: Path) -> str:
    """A file or folder by its full path, from the description's folder; a hub id as it is."""
    path = folder / Path(source).expanduser()
    return str(path.absolute()) if path.exists() else source
