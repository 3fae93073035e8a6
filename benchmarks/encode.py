"""Encoding: `python -m benchmarks.encode TEXTS`."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated

import tyro

from benchmarks import output
from benchmarks.agreement import check_agreement
from benchmarks.cli import device_name, distinct, require_at_least, run
from benchmarks.hardware import describe
from benchmarks.jobs import DeviceName, EncodeJob, EncodeRunner
from benchmarks.processes import Runners
from benchmarks.records import Agreement, EncodeMeasurement
from benchmarks.summary import encode_rates, ratios, summarize_encode
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
    runners: tuple[EncodeRunner, ...] = ("embedtune", "st-fp32", "st-bf16")
    """Who takes turns, in this order."""
    device: DeviceName | None = None
    """Where to compute; CUDA where there is any if not given."""
    out: Path | None = None
    """JSON file to write everything measured to."""

    def __post_init__(self) -> None:
        require_at_least(1, limit=self.limit, rounds=self.rounds, runners=len(self.runners))


def benchmark(options: EncodeOptions) -> None:
    """Check that the runners agree, time them in turn, print and write the results.

    Raises:
        DisagreementError: two runners don't compute the same.
        EmbedtuneError: the input can't be used, or a runner fails.
    """
    output.writable(options.out)
    device = device_name(options.device)
    facts = describe(device)
    output.show_hardware(facts)
    texts = _texts(options)
    with TemporaryDirectory() as folder:
        job = _job(options, texts, device, Path(folder))
        runners = Runners(job, Path(folder))
        for line in check_agreement(
            [runners.run("agree-encode", name, Agreement) for name in distinct(options.runners)]
        ):
            output.say(f"agreed: {line}")
        rounds = [_round(runners, number, options) for number in range(1, options.rounds + 1)]
    summaries, compared = summarize_encode(rounds), ratios(encode_rates(rounds))
    output.show_encode(summaries)
    output.show_ratios(compared)
    results = {
        "benchmark": "encode",
        "texts_file": options.texts,
        "job": {**asdict(job), "texts": len(texts), "rounds": options.rounds},
        "environment": facts,
        "summary": summaries,
        "ratios": compared,
        "rounds": rounds,
    }
    output.write_results(options.out, results)


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


def _round(runners: Runners, number: int, options: EncodeOptions) -> dict[str, EncodeMeasurement]:
    measured: dict[str, EncodeMeasurement] = {}
    for name in distinct(options.runners):
        measured[name] = runners.run("time-encode", name, EncodeMeasurement)
        rate = measured[name].texts / measured[name].seconds
        output.say(f"round {number}/{options.rounds}  {name}: {rate:,.0f} texts/s")
    return measured


if __name__ == "__main__":
    run(EncodeOptions, benchmark, name="encode")
