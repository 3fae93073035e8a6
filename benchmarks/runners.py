"""One runner in a process of its own: `python -m benchmarks.runners ACTION RUNNER JOB.json OUT.json`.

The other modules of this package start it; its result goes to `OUT.json`, embeddings to a file beside it.
"""

from __future__ import annotations

import importlib
import sys


def main(action: str, runner: str, job: str, out: str) -> None:
    """Do it, write the result, and exit by a code that says what went wrong."""
    if runner.startswith("unsloth"):
        importlib.import_module("unsloth")  # it patches transformers, so it must come before everything that imports it
    from benchmarks.actions import perform

    sys.exit(perform(action, runner, job, out))


if __name__ == "__main__":
    main(*sys.argv[1:])
