"""Coverage-guided fuzzing of one target with atheris (libFuzzer), which is no dependency of embedtune's.

In an environment with Python 3.11 or later that has embedtune and atheris::

    pip install atheris
    python -m tests.hostile.fuzz_atheris TARGET --seconds 120

It starts from the valid input in `starts.py` and the seeds of that target, goes on after a finding, and prints how many
inputs it ran. Each distinct finding, by its type and the innermost line of ours in its traceback, is written to
`--findings` (by default `/tmp/embedtune-findings`); shorten it, fix the fault, and keep the input in `seeds/` as
`TARGET-what-it-is.bin`.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
import traceback
from pathlib import Path
from tempfile import mkdtemp

import atheris

with atheris.instrument_imports(include=["embedtune.data", "embedtune.config", "embedtune.resuming", "json", "csv"]):
    from tests.hostile.targets import TARGETS, check
from tests.hostile.starts import starts

SLOW = 5.0
"""Seconds after which an input counts as a finding."""


class Findings:
    """Counts the inputs; keeps the first of each kind of finding."""

    def __init__(self, target: str, folder: Path) -> None:
        self.inputs = 0
        self.started = time.monotonic()
        self._target, self._folder = target, folder
        self._seen: set[str] = set()

    def add(self, content: bytes, kind: str, detail: str) -> None:
        if kind in self._seen:
            return
        self._seen.add(kind)
        self._folder.mkdir(parents=True, exist_ok=True)
        number = len(self._seen)
        (self._folder / f"{self._target}-{number}.bin").write_bytes(content)
        (self._folder / f"{self._target}-{number}.txt").write_text(f"{kind}\n{detail}", encoding="utf-8")
        print(f"FOUND {self._target}: {kind}", flush=True)

    def summary(self) -> str:
        seconds = time.monotonic() - self.started
        return f"{self._target}: {self.inputs:,} inputs, {seconds:.0f} s, {len(self._seen)} findings"


def place(error: BaseException) -> str:
    """The innermost line of embedtune's in the traceback."""
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if "/embedtune/" in frame.filename]
    where = f"{Path(frames[-1].filename).name}:{frames[-1].name}:{frames[-1].line}" if frames else "the target"
    return f"{type(error).__name__} at {where}"


def main() -> None:
    """Fuzz until the time is over."""
    parser = argparse.ArgumentParser()
    parser.add_argument("target", choices=TARGETS)
    parser.add_argument("--seconds", type=int, default=60)
    parser.add_argument("--findings", type=Path, default=Path("/tmp/embedtune-findings"))
    parser.add_argument("--longest", type=int, default=8_192, help="bytes of an input")
    options = parser.parse_args()
    target = TARGETS[options.target]
    shared = Path("/dev/shm")
    work = Path(mkdtemp(dir=shared if shared.is_dir() else None))
    corpus = work / "corpus"
    corpus.mkdir()
    (corpus / "start").write_bytes(starts()[options.target])
    for seed in Path(__file__).with_name("seeds").glob(f"{options.target}-*.bin"):
        (corpus / seed.name).write_bytes(seed.read_bytes())

    check(target, starts()[options.target], work / "input")  # imports what it takes
    findings = Findings(options.target, options.findings)

    def one(content: bytes) -> None:
        if time.monotonic() - findings.started > options.seconds:
            print(findings.summary(), flush=True)
            os._exit(0)  # libFuzzer's own limit is not looked at while it reads its corpus
        findings.inputs += 1
        begun = time.monotonic()
        try:
            check(target, content, work / "input")
        except Exception as error:
            findings.add(content, place(error), traceback.format_exc())
        if time.monotonic() - begun > SLOW:
            findings.add(content, "slow", f"{time.monotonic() - begun:.1f} s")

    atheris.Setup([sys.argv[0], f"-max_len={options.longest}", "-verbosity=0", "-rss_limit_mb=4096", str(corpus)], one)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
