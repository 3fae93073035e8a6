"""The exceptions embedtune raises on purpose.

::

    EmbedtuneError
    ├── UserError                what was typed or given is wrong; exit code 2
    │   ├── ConfigError          an option or a config file
    │   ├── DataError            a data file, its columns or its rows
    │   ├── ModelError           a base model, an adapter or a device
    │   ├── OutputError          the output folder
    │   ├── HubError             the Hugging Face Hub refuses, or can't be reached
    │   └── MissingExtraError    a package of an extra is not installed
    ├── RunError                 the input was fine, the run failed; exit code 1
    │   ├── NonFiniteLossError   the loss or the weights became NaN or infinite
    │   ├── StorageError         a file of the run can't be written or read: the disk is full, gone or damaged
    │   └── ExportMismatchError  the saved model does not embed like the trained one
    └── TrainingInterrupted      stopped by the user; everything is saved; exit code 130 after Ctrl-C,
                                 143 after SIGTERM, 75 when --max-time was over

Catch `UserError` to show the message and nothing else; catch `EmbedtuneError` for all of them. Every message
says what was received, what was expected and what to type. What of it comes out of a file can't do anything to the
terminal: it is shortened by `brief` where it is quoted, and escaped by `readable` in every message.
"""

import unicodedata

LONGEST_MESSAGE = 4_000
"""Characters of a message; the middle of a longer one is left out."""
LONGEST_QUOTE = 60
"""Characters of a value from a file that a message quotes."""


def readable(text: str) -> str:
    """The text as it can be shown in a terminal: control characters, marks of direction, and what else has no shape or
    is none of Unicode's are written as escapes; line breaks stay.
    """
    if len(text) > LONGEST_MESSAGE:
        text = f"{text[: LONGEST_MESSAGE * 3 // 4]} [...] {text[-LONGEST_MESSAGE // 8 :]}"
    if text.isascii() and text.isprintable():
        return text
    return "".join(map(_shown, text))


def _shown(character: str) -> str:
    if character == "\n" or character.isprintable() or unicodedata.category(character) == "Zs":
        return character
    return character.encode("unicode_escape").decode()


def brief(value: object, most: int = LONGEST_QUOTE) -> str:
    """A value from a file for a message: a text as it is, with its line breaks escaped, anything else as Python writes
    it; the rest of a long one is left out.
    """
    if isinstance(value, str):
        text = readable(value[: most + 1]).replace("\n", "\\n")
    else:
        try:
            text = repr(value)
        except (ValueError, RecursionError):  # an integer of thousands of digits; lists in lists in lists
            text = f"a {type(value).__name__} too long to show"
    return text if len(text) <= most else f"{text[: most - 3]}..."


def quoted(value: object) -> str:
    """As `brief`, with quotes around a text."""
    return f"'{brief(value)}'" if isinstance(value, str) else brief(value)


class EmbedtuneError(Exception):
    """Base of every exception that embedtune raises on purpose."""

    exit_code = 1

    def __init__(self, message: str = "") -> None:
        super().__init__(readable(message))


class UserError(EmbedtuneError):
    """What was typed or given can't be used; the message says what to type instead."""

    exit_code = 2


class ConfigError(UserError):
    """An option or a config file has a value that can't be used."""


class DataError(UserError):
    """A data file can't be read, or its rows can't be used."""


class ModelError(UserError):
    """A base model, an adapter or a device can't be used."""


class OutputError(UserError):
    """The output folder can't be used."""


class HubError(UserError):
    """The Hugging Face Hub refuses what was asked of it, or can't be reached."""


class MissingExtraError(UserError):
    """A package that belongs to one of embedtune's extras is not installed."""

    def __init__(self, package: str, extra: str, purpose: str) -> None:
        super().__init__(
            f"{purpose} needs the package '{package}', which is not installed.\nType:  pip install 'embedtune[{extra}]'"
        )


class RunError(EmbedtuneError):
    """The input was fine and the run failed all the same."""


class NonFiniteLossError(RunError):
    """The training loss, or the weights, became NaN or infinite."""


class StorageError(RunError):
    """A file of the run can't be written or read; what was saved before is kept."""


class ExportMismatchError(RunError):
    """The saved model, loaded again, does not give the embeddings of the trained one."""


class TrainingInterrupted(EmbedtuneError):
    """The user stopped the run, or the time it was given is over; everything is saved.

    Exit codes are 128 + the signal's number, as shells have it, and `TIME_IS_UP` after `--max-time`: the run did what
    it was told, but there is no model yet, and nobody interrupted it. sysexits.h calls that EX_TEMPFAIL, "try again".
    """

    TIME_IS_UP = 75

    def __init__(self, message: str, exit_code: int = 130) -> None:
        super().__init__(message)
        self.exit_code = exit_code
