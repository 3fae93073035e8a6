"""What each method of training takes: `python -m benchmarks methods PAIRS`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated, Any, Literal, NoReturn

import torch
import tyro
from transformers.utils import logging

from benchmarks import output
from benchmarks.agreement import check_losses
from benchmarks.batches import build_batches, write_batches
from benchmarks.cli import device_name, distinct, require_at_least, require_known, run, split_commas
from benchmarks.hardware import describe
from benchmarks.jobs import METHODS, DeviceName, MethodJob, cells_of
from benchmarks.processes import OutOfMemoryError, Runners
from benchmarks.records import MethodMeasurement
from benchmarks.sizes import SIZES, write_checkpoint
from benchmarks.summary import summarize_methods
from benchmarks.turns import Runner
from embedtune.models.hardware import PrecisionName, choose_precision

DEFAULT_BATCH = {"cpu": 32, "cuda": 128}


@dataclass(frozen=True, kw_only=True)
class MethodsOptions:
    """Memory and speed of lora, qlora, qlora --memory low and full, without and with gradient checkpointing."""

    pairs: Annotated[str, tyro.conf.Positional]
    """Question/passage pairs, in any form that `embedtune train` takes."""
    base: str = "sentence-transformers/all-MiniLM-L6-v2"
    """Hub id or folder of the tokenizer; the weights are random."""
    sizes: tuple[str, ...] = ("22m", "110m", "560m")
    """Encoders, separated by spaces or commas."""
    methods: tuple[str, ...] = ("lora", "qlora", "qlora-low", "full")
    """Methods, separated by spaces or commas; qlora-low is qlora --memory low."""
    batch_size: int | None = None
    """Pairs in a batch; 32 on a CPU and 128 on a GPU if not given."""
    max_length: int = 256
    """Tokens read of a text."""
    steps: int = 3
    """Timed steps of each process."""
    warmup: int = 1
    """Steps of each process before those; the peak of memory covers them too."""
    rounds: int = 2
    """How often each cell takes its turn."""
    device: DeviceName | None = None
    """Where to compute; CUDA where there is any if not given."""
    precision: PrecisionName = "auto"
    """Arithmetic of the encoder, chosen once for all cells."""
    optimizer: Literal["adamw", "adamw8bit"] = "adamw"
    """AdamW, or bitsandbytes' with moments in 8 bits."""
    seed: int = 0
    """Of the weights, the batches and the adapter's start."""
    json: Path | None = None
    """JSON file to write everything measured to."""

    def __post_init__(self) -> None:
        require_at_least(1, steps=self.steps, rounds=self.rounds)
        require_at_least(0, warmup=self.warmup)
        if self.batch_size is not None:
            require_at_least(2, batch_size=self.batch_size)
        require_known("sizes", split_commas(self.sizes), SIZES)
        require_known("methods", split_commas(self.methods), METHODS)


def benchmark(options: MethodsOptions) -> None:
    """Measure every cell in turn, check that the methods train alike, print and write the results.

    Raises:
        DisagreementError: gradient checkpointing or --memory low changes the loss.
        EmbedtuneError: the input can't be used, or a runner fails.
    """
    output.writable(options.json, option="--json")
    logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    device = device_name(options.device)
    precision, reason = choose_precision(options.precision, torch.device(device))
    facts = {**describe(device), "precision": precision, "precision_reason": reason}
    output.show_hardware(facts)
    output.say(f"precision {precision}: {reason}; optimizer {options.optimizer}")
    with TemporaryDirectory() as folder:
        jobs, parameters = _jobs(options, device, precision, Path(folder))
        cells = [cell for method in distinct(split_commas(options.methods)) for cell in cells_of(method)]
        runners = {size: Runners(job, Path(folder) / size) for size, job in jobs.items()}
        rounds = measure(runners, cells, rounds=options.rounds, precision=precision)
    summaries = summarize_methods(rounds)
    output.show_methods(summaries)
    job = {key: value for key, value in asdict(next(iter(jobs.values()))).items() if key not in ("base", "batches")}
    results: dict[str, Any] = {
        "benchmark": "methods",
        "pairs_file": options.pairs,
        "tokenizer": options.base,
        "job": {**job, "steps": options.steps, "rounds": options.rounds},
        "environment": facts,
        "parameters": parameters,
        "summary": summaries,
        "rounds": rounds,
    }
    output.write_results(options.json, results)


def measure(
    runners: Mapping[str, Runner], cells: Sequence[str], *, rounds: int, precision: str
) -> list[dict[str, dict[str, MethodMeasurement | None]]]:
    """Each cell of each size in turn, as many times as there are rounds.

    Args:
        runners: of each size.
        cells: names out of `jobs.cells_of`.
        rounds: turns that each cell takes; one that ran out of memory takes no further one.
        precision: of the encoder.

    Returns:
        For each round, size to cell to measurement; None where memory ran out.

    Raises:
        DisagreementError: cells that must have the same loss have not.
    """
    found: list[dict[str, dict[str, MethodMeasurement | None]]] = []
    for number in range(1, rounds + 1):
        found.append({})
        for size, runner in runners.items():
            measured = found[-1][size] = {}
            for cell in cells:
                fits = all(earlier[size][cell] is not None for earlier in found[:-1])
                measured[cell] = _measure(runner, cell) if fits else None
                output.say(f"round {number}/{rounds}  {size} {cell}: {_progress(measured[cell])}")
            losses = {cell: m.losses for cell, m in measured.items() if m is not None}
            for line in check_losses(size, losses, precision):
                output.say(f"look at this: {line}")
    return found


def _measure(runner: Runner, cell: str) -> MethodMeasurement | None:
    try:
        return runner.run("time-method", cell, MethodMeasurement)
    except OutOfMemoryError:
        return None


def _progress(measured: MethodMeasurement | None) -> str:
    if measured is None:
        return "out of memory"
    return f"mean step {sum(measured.step_seconds) / len(measured.step_seconds):.3f} s"


def _jobs(
    options: MethodsOptions, device: DeviceName, precision: PrecisionName, folder: Path
) -> tuple[dict[str, MethodJob], dict[str, int]]:
    """The job of each size, and its number of parameters; batches and checkpoints are written to the folder."""
    batch_size = options.batch_size or DEFAULT_BATCH[device]
    batches, count = folder / "batches.jsonl", options.warmup + options.steps
    write_batches(build_batches(options.pairs, batch_size=batch_size, count=count, seed=options.seed), batches)
    jobs, parameters = dict[str, MethodJob](), dict[str, int]()
    for size in distinct(split_commas(options.sizes)):
        base = folder / size / "checkpoint"
        parameters[size] = write_checkpoint(size, base, base=options.base, seed=options.seed)
        jobs[size] = MethodJob(
            base=str(base),
            batches=str(batches),
            batch_size=batch_size,
            max_length=options.max_length,
            device=device,
            precision=precision,
            optimizer=options.optimizer,
            warmup=options.warmup,
            seed=options.seed,
        )
    return jobs, parameters


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """The command line, or these arguments."""
    run(MethodsOptions, benchmark, arguments, name="methods")


if __name__ == "__main__":
    main()
