"""What the values of settings have to be."""

from __future__ import annotations

import dataclasses
import math
import typing
from pathlib import Path
from typing import Any

from embedtune.errors import ConfigError, brief


def require(condition: bool, option: str, value: object, expected: str) -> None:
    """Refuse an option's value unless the condition holds.

    Raises:
        ConfigError: it does not.
    """
    if not condition:
        raise ConfigError(f"--{option} is {brief(value)}, expected {expected}.")


def require_usable(config: Any) -> None:
    """Refuse values that have the right type and that nothing takes: numbers beyond all sizes, and texts with a NUL or
    half a character, which are the names of no file, column or module.

    Raises:
        ConfigError: there is one.
    """
    for option in dataclasses.fields(config):
        value, name = getattr(config, option.name), option.name.replace("_", "-")
        for part in value if isinstance(value, tuple) else (value,):
            if isinstance(part, float):
                require(math.isfinite(part), name, part, "a finite number")
            elif isinstance(part, int):
                require(abs(part) < 2**32, name, part, "a number of less than 2**32")
            elif isinstance(part, (str, Path)):
                text = str(part)
                usable = "\0" not in text and not any("\ud800" <= character <= "\udfff" for character in text)
                require(usable, name, text, "text without NUL characters and halves of characters")


def require_choice(config: object, name: str) -> None:
    """Refuse a value that is none of the choices that the field's type lists.

    Raises:
        ConfigError: it is none.
    """
    choices = typing.get_args(typing.get_type_hints(type(config))[name])
    value = getattr(config, name)
    require(value in choices, name, value, f"one of {', '.join(choices)}")
