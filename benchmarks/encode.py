"""Encoding: `python -m benchmarks encode TEXTS`."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated, NoReturn

import tyro

from benchmarks import output
from benchmarks.cli import device_name, require_at_least, run
from benchmarks.hardware import describe
from benchmarks.jobs import DEFAULT_ENCODE_RUNNERS, DeviceName, EncodeJob, EncodeRunner
from benchmarks.processes import Runners
from benchmarks.records import EncodeMeasurement
from benchmarks.summary import encode_rates, ratios, summarize_encode
from benchmarks.turns import Participants
from embedtune.data.read import read_passages
from embedtune.errors import DataError


@dataclass(frozen=True, kw_only=True)
class EncodeOptions:
    """Time embedding texts with embedtune and with `SentenceTransformer.encode`."""

    texts: Annotated[str, tyro.conf.Positional]
    """File of texts, in any form that `embedtune encode` takes."""
    base: str = "sentence-transformers/all-MiniLM-L12-v2"
    """Hub id or folder of the encoder."""
    column: str | None = None
    """Column of the texts, if its name is not recognised."""
    limit: int = 2_000
    """Distinct texts to embed, from the file's beginning."""
    max_length: int = 256
    """Tokens read of a text."""
    rounds: int = 3
    """How often each runner takes its turn."""
    runners: tuple[EncodeRunner, ...] = ()
    """Who takes turns, in this order; embedtune and each peer that can run on this machine if not given."""
    device: DeviceName | None = None
    """Where to compute; CUDA where there is any if not given."""
    out: Path | None = None
    """JSON file to write everything measured to."""

    def __post_init__(self) -> None:
        require_at_least(1, limit=self.limit, rounds=self.rounds)


def benchmark(options: EncodeOptions) -> None:
    """Check that the runners agree, time them in turn, print and write the results.

    Raises:
        UserError: the input can't be used.
        RunError: a runner failed, or two don't compute the same; what the others took has been told by then.
    """
    output.writable(options.out)
    device = device_name(options.device)
    facts = describe(device)
    output.show_hardware(facts)
    participants = Participants.of(options.runners, DEFAULT_ENCODE_RUNNERS, device)
    texts = _texts(options)
    with TemporaryDirectory() as folder:
        job = _job(options, texts, device, Path(folder))
        runners = Runners(job, Path(folder))
        participants.agree(runners, "agree-encode")
        rounds = [_round(runners, participants, f"round {n}/{options.rounds}") for n in range(1, options.rounds + 1)]
    summaries, compared = summarize_encode(rounds), ratios(encode_rates(rounds), refused=participants.disagreeing)
    output.show_encode(summaries)
    output.show_failures(participants.failed)
    output.show_ratios(compared)
    results = {
        "benchmark": "encode",
        "texts_file": options.texts,
        "job": {**asdict(job), "texts": len(texts), "rounds": options.rounds},
        "environment": facts,
        "skipped": participants.skipped,
        "failed": participants.failed,
        "agreement": participants.compared,
        "summary": summaries,
        "ratios": compared,
        "rounds": rounds,
    }
    output.write_results(options.out, results)
    participants.complain()


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """The command line, or these arguments."""
    run(EncodeOptions, benchmark, arguments, name="encode")


def _texts(options: EncodeOptions) -> list[str]:
    found = read_passages(options.texts, column=options.column)
    distinct_texts = list(dict.fromkeys(text for text in found if isinstance(text, str) and text.strip()))
    if not distinct_texts:
        raise DataError(f"'{options.texts}' has no texts.\nType --column NAME if they are in another column.")
    return distinct_texts[: options.limit]


def _job(options: EncodeOptions, texts: list[str], device: DeviceName, folder: Path) -> EncodeJob:
    path = folder / "texts.json"
    path.write_text(json.dumps(texts), encoding="utf-8")
    return EncodeJob(base=options.base, texts=str(path), max_length=options.max_length, device=device)


def _round(runners: Runners, participants: Participants, label: str) -> dict[str, EncodeMeasurement]:
    measured: dict[str, EncodeMeasurement] = {}
    for name, taken in participants.take_turns(runners, "time-encode", EncodeMeasurement):
        measured[name] = taken
        output.say(f"{label}  {name}: {taken.texts / taken.seconds:,.0f} texts/s")
    return measured


if __name__ == "__main__":
    main()
