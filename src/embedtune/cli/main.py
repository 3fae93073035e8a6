"""`embedtune COMMAND ...`: finds the command, turns errors into one message and an exit code."""

from __future__ import annotations

import importlib
import logging
import os
import signal
import sys
import threading
import traceback
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from types import FrameType

from embedtune.cli.secrets import SecretsRemoved, without_secrets
from embedtune.errors import EmbedtuneError, readable

COMMANDS = {
    "train": "fine-tune an encoder on question/passage pairs",
    "tune": "search for better settings by the dev split",
    "eval": "measure retrieval with a model on a test file",
    "mine": "add hard negatives to question/passage pairs",
    "encode": "embed the texts of a file",
    "report": "make the report of a run or an evaluation again",
    "push": "upload a run's model to the Hugging Face Hub",
    "demo": "the whole job on the built-in example, no network needed",
}

USAGE = f"""usage: embedtune COMMAND [OPTIONS]

{chr(10).join(f"  {name:8}{purpose}" for name, purpose in COMMANDS.items())}

embedtune COMMAND --help lists a command's options. With --debug errors come with their traceback.
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit code.

    0 done; 1 the run failed; 2 the input is wrong; 130 Ctrl-C, 143 SIGTERM, 75 `--max-time` is over.
    """
    given = list(sys.argv[1:] if arguments is None else arguments)
    debug = "--debug" in given
    given = [argument for argument in given if argument != "--debug"]
    if not given or given[0] in ("-h", "--help"):
        print(USAGE, end="")
        return 0 if given else 2
    if given[0] == "--version":
        from embedtune import __version__

        print(f"embedtune {__version__}")
        return 0
    if given[0] not in COMMANDS:
        print(f"embedtune: there is no command '{given[0]}'.\n\n{USAGE}", end="", file=sys.stderr)
        return 2
    _quieten(debug)
    _send_nothing()
    return _run(given[0], given[1:], debug)


def _run(command: str, arguments: list[str], debug: bool) -> int:
    try:
        with _sigterm_like_ctrl_c():
            importlib.import_module(f"embedtune.cli.{command}").main(arguments)
    except EmbedtuneError as error:
        if debug:
            print(without_secrets(traceback.format_exc()), end="", file=sys.stderr)
        print(f"embedtune: {without_secrets(str(error))}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt as stopped:
        print("embedtune: stopped.", file=sys.stderr)
        return 143 if isinstance(stopped, _Terminated) else 130
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except Exception as error:
        if debug:
            print(without_secrets(traceback.format_exc()), end="", file=sys.stderr)
        print(
            f"embedtune: the run failed: {type(error).__name__}: {readable(without_secrets(str(error)))}\n"
            "This is not a message of embedtune's own; run it again with --debug for the traceback.",
            file=sys.stderr,
        )
        return 1
    return 0


class _Terminated(KeyboardInterrupt):
    """SIGTERM: what is half-written is removed, as after Ctrl-C."""


@contextmanager
def _sigterm_like_ctrl_c() -> Iterator[None]:
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def stop(number: int, frame: FrameType | None) -> None:
        raise _Terminated

    previous = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, previous)


def _send_nothing() -> None:
    """No usage statistics from the libraries that would send any; they read this when they are imported."""
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    os.environ.setdefault("HF_UPDATE_DOWNLOAD_COUNTS", "0")


def _quieten(debug: bool) -> None:
    """Libraries' progress bars and notices off, before they are imported; --debug leaves everything on."""
    logging.basicConfig(level=logging.INFO, format="%(name)s: %(message)s")
    for handler in logging.getLogger().handlers[:1]:
        handler.setFormatter(SecretsRemoved("%(name)s: %(message)s"))
    if debug:
        return
    logging.getLogger().handlers[0].setLevel(logging.ERROR)
    os.environ.setdefault("HF_HUB_VERBOSITY", "error")
    warnings.simplefilter("ignore")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "true")
