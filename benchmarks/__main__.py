"""`python -m benchmarks [COMMAND ...]`: what there is to measure, and the way to it."""

from __future__ import annotations

import sys
from importlib import import_module

from benchmarks import COMMANDS
from benchmarks.output import fail, say


def main(arguments: list[str]) -> None:
    """Hand over to the module of the command.

    `python -m benchmarks train …` is `python -m benchmarks.train …`.
    """
    name = arguments[0] if arguments else "--help"
    if name in ("-h", "--help"):
        say("usage: python -m benchmarks COMMAND ...\n")
        for command, purpose in COMMANDS.items():
            say(f"  {command:13}  {purpose}")
        say("\npython -m benchmarks COMMAND --help lists its options.")
    elif name in COMMANDS:
        import_module(f"benchmarks.{name.replace('-', '_')}").main(arguments[1:])
    else:
        fail(f"benchmarks: '{name}' is none of {', '.join(COMMANDS)}.\nType:  python -m benchmarks --help")
        sys.exit(2)


if __name__ == "__main__":
    main(sys.argv[1:])
