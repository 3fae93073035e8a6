"""Training steps: `python -m benchmarks train [PAIRS]`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Annotated, Any, NoReturn

import tyro

from benchmarks import output
from benchmarks.batches import build_batches, write_batches
from benchmarks.cli import device_name, require_at_least, run
from benchmarks.hardware import describe
from benchmarks.inputs import base_model, pairs_source
from benchmarks.jobs import DEFAULT_TRAIN_RUNNERS, AdapterMethod, DeviceName, GemmJob, TrainJob, TrainRunner
from benchmarks.processes import Runners
from benchmarks.records import GemmRates, TrainMeasurement, Workload
from benchmarks.sizes import ShapeName
from benchmarks.summary import median_gemm, summarize_train, train_ratios
from benchmarks.turns import Participants
from embedtune.errors import ConfigError

DEFAULT_STEPS = {"cpu": 8, "cuda": 30}
DEFAULT_WARMUP = {"cpu": 1, "cuda": 5}


@dataclass(frozen=True, kw_only=True)
class TrainOptions:
    """Time LoRA or QLoRA training steps of embedtune and of its peers on the same batches."""

    pairs: Annotated[str | None, tyro.conf.Positional] = None
    """Question/passage pairs, in any form that `embedtune train` takes; those of the built-in demo if not given."""
    base: str | None = None
    """Hub id or folder of the encoder. all-MiniLM-L12-v2 if not given, or the demo's model for the demo's pairs."""
    shape: ShapeName | None = None
    """A model of that shape with random weights instead, with the tokenizer of --base: the cost of a step is the
    same, and there is nothing to download."""
    method: AdapterMethod = "lora"
    """An adapter on the base as it is, or on a base in 4 bits (NF4, double quantisation)."""
    batch_size: int = 64
    """Pairs in a batch."""
    max_length: int = 256
    """Tokens read of a text."""
    steps: int | None = None
    """Timed steps of each process; 8 on a CPU and 30 on a GPU if not given."""
    warmup: int | None = None
    """Steps of each process before those; 1 on a CPU and 5 on a GPU if not given."""
    rounds: int = 3
    """How often each runner takes its turn."""
    rank: int = 16
    """Rank of the adapter."""
    alpha: float = 32.0
    """The adapter's update is scaled by alpha / rank."""
    runners: tuple[TrainRunner, ...] = ()
    """Who takes turns, in this order; embedtune and each peer that can run on this machine if not given."""
    mini_batch: int | None = None
    """Peers embed so many texts at a time, by CachedMultipleNegativesRankingLoss, for batches that don't fit them
    otherwise; all at once if not given. embedtune finds what fits, as always; embedtune-cached takes as many tokens
    at a time as that many passages have."""
    device: DeviceName | None = None
    """Where to compute; CUDA where there is any if not given."""
    seed: int = 0
    """Of the batches, the adapter's start and random weights."""
    time_limit: float | None = None
    """Seconds after which a process counts as failed; none if not given."""
    out: Path | None = None
    """JSON file to write everything measured to; it is written anew after each round."""

    def __post_init__(self) -> None:
        require_at_least(1, rounds=self.rounds, rank=self.rank)
        require_at_least(2, batch_size=self.batch_size)
        if self.steps is not None:
            require_at_least(1, steps=self.steps)
        if self.warmup is not None:
            require_at_least(0, warmup=self.warmup)
        if self.mini_batch is not None:
            require_at_least(1, mini_batch=self.mini_batch)
        elif "embedtune-cached" in self.runners:
            raise ConfigError(
                "--runners embedtune-cached: it is about texts that are embedded in parts, and --mini-batch is not "
                "given.\nType:  --mini-batch 128"
            )


@dataclass
class Measured:
    """What there is so far."""

    work: Workload
    participants: Participants
    gemms: list[GemmRates] = field(default_factory=list)
    rounds: list[dict[str, TrainMeasurement]] = field(default_factory=list)

    def results(self) -> dict[str, Any]:
        """For the JSON file."""
        return {
            "skipped": self.participants.skipped,
            "failed": self.participants.failed,
            "agreement": self.participants.compared,
            "work": self.work,
            "gemm": self.gemms,
            "summary": summarize_train(self.rounds, self.work, self.gemms),
            "ratios": train_ratios(self.rounds, refused=self.participants.disagreeing),
            "rounds": self.rounds,
        }


def benchmark(options: TrainOptions) -> None:
    """Check that the runners agree, time them in turn, print and write the results.

    Raises:
        UserError: the input can't be used.
        RunError: a runner failed, or two don't compute the same; what the others took has been told by then.
    """
    output.writable(options.out)
    device = device_name(options.device)
    facts = describe(device)
    output.show_hardware(facts)
    participants = Participants.of(options.runners, DEFAULT_TRAIN_RUNNERS, device, method=options.method)
    with TemporaryDirectory() as folder:
        job, steps = _job(options, device, Path(folder))
        runners = Runners(job, Path(folder) / "train", options.time_limit)
        measured = Measured(runners.run("workload", "all", Workload), participants)
        participants.agree(runners, "agree-train")
        gemm = Runners(GemmJob(device=device, shape=measured.work.feed_forward), Path(folder) / "gemm")
        told = {**asdict(job), "batches": None, "steps": steps, "rounds": options.rounds, "shape": options.shape}
        header = {"benchmark": "train", "pairs_file": pairs_source(options.pairs), "job": told, "environment": facts}
        try:
            for number in range(1, options.rounds + 1):
                _round(runners, gemm, measured, f"round {number}/{options.rounds}")
                output.save_results(options.out, {**header, **measured.results()})
        finally:
            _show(measured)
            output.write_results(options.out, {**header, **measured.results()})
    participants.complain()


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """The command line, or these arguments."""
    run(TrainOptions, benchmark, arguments, name="train")


def _job(options: TrainOptions, device: DeviceName, folder: Path) -> tuple[TrainJob, int]:
    """The job of all runners, its batches written to the folder, and how many steps of it are timed."""
    batches = folder / "batches.jsonl"
    steps = options.steps or DEFAULT_STEPS[device]
    warmup = DEFAULT_WARMUP[device] if options.warmup is None else options.warmup
    source = pairs_source(options.pairs)
    write_batches(
        build_batches(source, batch_size=options.batch_size, count=steps + warmup, seed=options.seed), batches
    )
    job = TrainJob(
        base=base_model(options.base, options.shape, demo=options.pairs is None, folder=folder, seed=options.seed),
        batches=str(batches),
        batch_size=options.batch_size,
        max_length=options.max_length,
        method=options.method,
        rank=options.rank,
        alpha=options.alpha,
        device=device,
        lr=2e-3,
        schedule="constant",
        warmup_fraction=0.0,
        weight_decay=0.01,
        scale=20.0,
        seed=options.seed,
        warmup=warmup,
        mini_batch=options.mini_batch,
    )
    return job, steps


def _round(runners: Runners, gemm: Runners, measured: Measured, label: str) -> None:
    """The device's rates, then each runner in turn."""
    measured.gemms.append(gemm.run("gemm", "all", GemmRates))
    measured.rounds.append({})
    for name, taken in measured.participants.take_turns(runners, "time-train", TrainMeasurement):
        measured.rounds[-1][name] = taken
        output.say(f"{label}  {name}: median step {median(taken.step_seconds):.4f} s")


def _show(measured: Measured) -> None:
    results = measured.results()
    if measured.gemms:
        output.show_work(measured.work, median_gemm(measured.gemms))
    output.show_train(results["summary"])
    output.show_failures(measured.participants.failed)
    output.show_ratios(results["ratios"])


if __name__ == "__main__":
    main()
