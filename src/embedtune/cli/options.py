"""Command-line options from config classes, by tyro."""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeVar

import tyro

from embedtune.config import TrainConfig
from embedtune.config_file import Config, load_config
from embedtune.paths import expanded

Options = TypeVar("Options")

_STYLE = (tyro.conf.OmitArgPrefixes, tyro.conf.FlagCreatePairsOff, tyro.conf.HelptextFromCommentsOff)


def parse(options: type[Options], arguments: Sequence[str], *, command: str, default: Options | None = None) -> Options:
    """Options of one command; exits with code 2 and a message if they can't be read."""
    given = {} if default is None else {"default": default}
    prog = f"embedtune {command}"
    parsed: Options = tyro.cli(options, prog=prog, args=list(arguments), config=_STYLE, **given)  # type: ignore[call-overload]
    return _with_whole_paths(parsed)


def _with_whole_paths(options: Options) -> Options:
    """The options, of which no path begins with a `~`."""
    changed: dict[str, Any] = {}
    for option in dataclasses.fields(options):  # type: ignore[arg-type]
        value = getattr(options, option.name)
        if isinstance(value, Path):
            changed[option.name] = expanded(value)
        elif dataclasses.is_dataclass(value):
            changed[option.name] = _with_whole_paths(value)
    return dataclasses.replace(options, **changed)  # type: ignore[type-var]


def parse_train(arguments: Sequence[str]) -> TrainConfig:
    """Options of `embedtune train`."""
    return parse_with_file(TrainConfig, arguments, command="train")


def parse_with_file(kind: type[Config], arguments: Sequence[str], *, command: str) -> Config:
    """Options of a command with a config; `--config FILE.toml` gives the values that the others then override."""
    finder = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    finder.add_argument("--config", type=Path)
    found, others = finder.parse_known_args(list(arguments))
    return parse(
        kind,
        others,
        command=command,
        default=None if found.config is None else load_config(kind, expanded(found.config)),
    )
