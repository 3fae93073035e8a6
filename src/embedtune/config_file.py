"""A config as nested dicts and as TOML text, and back; what is unknown or of another type is said with its place."""

from __future__ import annotations

import dataclasses
import sys
import types
import typing
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, TypeVar

import tomli_w

from embedtune.config import TrainConfig
from embedtune.errors import ConfigError, brief, quoted
from embedtune.paths import expanded

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

Section = TypeVar("Section")
Config = TypeVar("Config", bound=TrainConfig)


def load_toml(path: Path) -> TrainConfig:
    """`load_config` of a training run."""
    return load_config(TrainConfig, path)


def load_config(kind: type[Config], path: Path) -> Config:
    """Read a TOML file with a section for each topic of that config, such as [data]; all are optional.

    Raises:
        ConfigError: the file can't be read, or has a section, a key or a value that isn't known.
    """
    return build(kind, read_toml(path), source=str(path))


def read_toml(path: Path) -> dict[str, Any]:
    """The content of a TOML file, whatever it is about.

    Raises:
        ConfigError: the file can't be read.
    """
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ConfigError(f"--config {path}: no such file.") from None
    except (OSError, ValueError) as error:  # an integer of thousands of digits is a ValueError alone
        raise ConfigError(f"--config {path}: not a readable TOML file: {brief(str(error), 300)}") from None
    except RecursionError:
        raise ConfigError(f"--config {path}: not a readable TOML file: nested too deeply.") from None


def from_dict(document: Mapping[str, Any], *, source: str) -> TrainConfig:
    """`build` of a training run."""
    return build(TrainConfig, document, source=source)


def build(kind: type[Config], document: Mapping[str, Any], *, source: str) -> Config:
    """Build a config from nested mappings, such as a parsed TOML file.

    Raises:
        ConfigError: a section, a key or a value isn't known; the message names the valid ones.
    """
    sections = typing.get_type_hints(kind)
    if unknown := sorted(set(document) - set(sections)):
        raise ConfigError(f"{source}: unknown section [{brief(unknown[0])}]; the sections are {_brackets(sections)}.")
    built = {}
    for name, values in document.items():
        if not isinstance(values, Mapping):
            raise ConfigError(f"{source}: '{name}' must be a section, [{name}], not {quoted(values)}.")
        built[name] = _section(sections[name], values, where=f"{source}, [{name}]")
    return kind(**built)


def to_dict(config: TrainConfig) -> dict[str, dict[str, Any]]:
    """Nested dicts of plain values; what is None is left out, as TOML has no word for it."""
    return {
        section: {key: _plain(value) for key, value in values.items() if value is not None}
        for section, values in dataclasses.asdict(config).items()
    }


def to_toml(config: TrainConfig) -> str:
    """The TOML text that `load_toml` reads back to an equal config."""
    return tomli_w.dumps(to_dict(config))


def _section(cls: type[Section], values: Mapping[str, Any], *, where: str) -> Section:
    hints = typing.get_type_hints(cls)
    if unknown := sorted(set(values) - set(hints)):
        raise ConfigError(f"{where}: unknown key '{brief(unknown[0])}'; the keys are {', '.join(sorted(hints))}.")
    return cls(**{key: _convert(hints[key], value, where=f"{where} {key}") for key, value in values.items()})


def _convert(hint: Any, value: Any, *, where: str) -> Any:
    """A TOML value as the field's type, or a ConfigError that names both."""
    options = typing.get_args(hint) if typing.get_origin(hint) in (typing.Union, types.UnionType) else (hint,)
    for option in options:
        if option is float and type(value) in (int, float):
            # One beyond all floats stays as it is, and is refused as too large.
            return float(value) if abs(value) <= sys.float_info.max else value
        if option is Path and isinstance(value, str):
            return expanded(value)
        if typing.get_origin(option) is tuple and _is_list_of(typing.get_args(option)[0], value):
            return tuple(value)
        if typing.get_origin(option) is Literal or (isinstance(option, type) and type(value) is option):
            return value
    expected = " or ".join(getattr(o, "__name__", str(o)) for o in options if o is not type(None))
    raise ConfigError(f"{where}: got {quoted(value)}, expected {expected}.")


def _is_list_of(kind: type, value: Any) -> bool:
    return isinstance(value, list) and all(type(item) is kind for item in value)


def _plain(value: Any) -> Any:
    if isinstance(value, Path):
        return str(value)
    return list(value) if isinstance(value, tuple) else value


def _brackets(names: Mapping[str, Any]) -> str:
    return ", ".join(f"[{name}]" for name in names)
