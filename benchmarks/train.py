"""Training steps: `python -m benchmarks.train PAIRS`."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Annotated

import tyro

from benchmarks import output
from benchmarks.agreement import check_agreement
from benchmarks.batches import build_batches, write_batches
from benchmarks.cli import device_name, distinct, require_at_least, run
from benchmarks.hardware import describe
from benchmarks.jobs import WARMUP_STEPS, DeviceName, TrainJob, TrainRunner
from benchmarks.processes import Runners
from benchmarks.records import Agreement, GemmRates, TrainMeasurement, Workload
from benchmarks.summary import ratios, summarize_train, train_rates


@dataclass(frozen=True, kw_only=True)
class TrainOptions:
    """Time LoRA training steps of embedtune and of Sentence Transformers + PEFT on the same batches."""

    pairs: Annotated[str, tyro.conf.Positional]
    """Question/passage pairs, in any form that `embedtune train` takes."""
    base: str = "sentence-transformers/all-MiniLM-L12-v2"
    """Hub id or folder of the encoder."""
    batch_size: int = 64
    """Pairs in a batch."""
    max_length: int = 256
    """Tokens read of a text."""
    steps: int = 8
    """Timed steps of each process, after one step of warm-up."""
    rounds: int = 3
    """How often each runner takes its turn."""
    rank: int = 16
    """Rank of the adapter."""
    alpha: float = 32.0
    """The adapter's update is scaled by alpha / rank."""
    runners: tuple[TrainRunner, ...] = ("embedtune", "st-fp32", "st-bf16")
    """Who takes turns, in this order."""
    device: DeviceName | None = None
    """Where to compute; CUDA where there is any if not given."""
    seed: int = 0
    """Of the batches and the adapter's start."""
    out: Path | None = None
    """JSON file to write everything measured to."""

    def __post_init__(self) -> None:
        require_at_least(1, steps=self.steps, rounds=self.rounds, rank=self.rank, runners=len(self.runners))
        require_at_least(2, batch_size=self.batch_size)


def benchmark(options: TrainOptions) -> None:
    """Check that the runners agree, time them in turn, print and write the results.

    Raises:
        DisagreementError: two runners don't compute the same.
        EmbedtuneError: the input can't be used, or a runner fails.
    """
    output.writable(options.out)
    device = device_name(options.device)
    facts = describe(device)
    output.show_hardware(facts)
    with TemporaryDirectory() as folder:
        job = _job(options, device, Path(folder))
        runners = Runners(job, Path(folder))
        work = runners.run("workload", "all", Workload)
        for line in check_agreement(
            [runners.run("agree-train", name, Agreement) for name in distinct(options.runners)]
        ):
            output.say(f"agreed: {line}")
        gemms, rounds = _rounds(runners, options)
    output.show_work(work, _median_gemm(gemms))
    summaries, compared = summarize_train(rounds, work, gemms), ratios(train_rates(rounds, work))
    output.show_train(summaries)
    output.show_ratios(compared)
    results = {
        "benchmark": "train",
        "pairs_file": options.pairs,
        "job": {**asdict(job), "batches": None, "steps": options.steps, "rounds": options.rounds},
        "environment": facts,
        "work": work,
        "gemm": gemms,
        "summary": summaries,
        "ratios": compared,
        "rounds": rounds,
    }
    output.write_results(options.out, results)


def _job(options: TrainOptions, device: DeviceName, folder: Path) -> TrainJob:
    """The job of all runners, its batches written to the folder."""
    batches = folder / "batches.jsonl"
    count = options.steps + WARMUP_STEPS
    write_batches(build_batches(options.pairs, batch_size=options.batch_size, count=count, seed=options.seed), batches)
    return TrainJob(
        base=options.base,
        batches=str(batches),
        batch_size=options.batch_size,
        max_length=options.max_length,
        rank=options.rank,
        alpha=options.alpha,
        device=device,
        lr=2e-3,
        weight_decay=0.01,
        scale=20.0,
        seed=options.seed,
    )


def _rounds(runners: Runners, options: TrainOptions) -> tuple[list[GemmRates], list[dict[str, TrainMeasurement]]]:
    """The device's rate, then each runner in turn, as many times as there are rounds."""
    gemms, rounds = list[GemmRates](), list[dict[str, TrainMeasurement]]()
    for number in range(1, options.rounds + 1):
        gemms.append(runners.run("gemm", "all", GemmRates))
        rounds.append({})
        for name in distinct(options.runners):
            measured = runners.run("time-train", name, TrainMeasurement)
            rounds[-1][name] = measured
            seconds = median(measured.step_seconds)
            output.say(f"round {number}/{options.rounds}  {name}: median step {seconds:.3f} s")
    return gemms, rounds


def _median_gemm(gemms: list[GemmRates]) -> GemmRates:
    return GemmRates(shape=gemms[0].shape, fp32=median(g.fp32 for g in gemms), bf16=median(g.bf16 for g in gemms))


if __name__ == "__main__":
    run(TrainOptions, benchmark, name="train")
