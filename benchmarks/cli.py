"""Options and exit codes that the benchmarks share."""

from __future__ import annotations

import sys
from collections.abc import Callable, Collection, Sequence
from typing import NoReturn, TypeVar

import tyro

from benchmarks.jobs import DeviceName
from benchmarks.output import fail
from embedtune.errors import ConfigError, EmbedtuneError
from embedtune.models.hardware import choose_device

Options = TypeVar("Options")


def run(
    options: type[Options], benchmark: Callable[[Options], None], arguments: Sequence[str] | None, *, name: str
) -> NoReturn:
    """Parse the arguments, the command line's if None, run, and exit: 0 done, 1 runners disagree or fail, 2 the input
    is wrong.
    """
    given = sys.argv[1:] if arguments is None else list(arguments)
    try:
        benchmark(tyro.cli(options, prog=f"python -m benchmarks {name}", args=given))
    except EmbedtuneError as error:
        fail(f"benchmarks {name}: {error}")
        sys.exit(error.exit_code)
    sys.exit(0)


def device_name(given: DeviceName | None) -> DeviceName:
    """The device to measure on: as asked, else CUDA where there is any.

    Raises:
        ModelError: CUDA was asked for and there is none.
    """
    return "cuda" if choose_device(given or "auto").type == "cuda" else "cpu"


def require_at_least(least: int, **options: int) -> None:
    """Refuse an option that is too small.

    Raises:
        ConfigError: one is below `least`.
    """
    for name, value in options.items():
        if value < least:
            raise ConfigError(f"--{name.replace('_', '-')} is {value}, expected {least} or more.")


def require_known(option: str, values: Sequence[str], known: Collection[str]) -> None:
    """Refuse no value at all, and one that is not known.

    Raises:
        ConfigError: naming those that are.
    """
    for value in values or ("nothing",):
        if value not in known:
            raise ConfigError(f"--{option} has {value}, expected some of {', '.join(known)}.")


def split_commas(values: Sequence[str]) -> list[str]:
    """`a,b c` as `a b c`."""
    return [part for value in values for part in value.split(",") if part]


def distinct(runners: Sequence[str]) -> list[str]:
    """The runners without repetitions, in their order."""
    return list(dict.fromkeys(runners))
