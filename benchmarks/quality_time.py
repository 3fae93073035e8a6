"""Time to reach a given quality: `python -m benchmarks quality-time [PAIRS] --ndcg X`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated, Any, NoReturn

import tyro

from benchmarks import output
from benchmarks.batches import Batch, epoch_of_batches, write_batches
from benchmarks.cli import device_name, require_at_least, run
from benchmarks.dev import write_dev
from benchmarks.hardware import describe
from benchmarks.inputs import base_model, pairs_source
from benchmarks.jobs import AdapterMethod, DeviceName, QualityJob, QualityRunner, TrainJob
from benchmarks.processes import Runners
from benchmarks.records import QualityMeasurement
from benchmarks.summary import quality_ratios, summarize_quality
from benchmarks.turns import Participants
from embedtune.config import DataConfig
from embedtune.data.prepare import Splits, prepare
from embedtune.errors import ConfigError, DataError
from embedtune.measuring import dev_task

DEFAULT_RUNNERS: tuple[QualityRunner, ...] = ("embedtune", "st-fp32", "st-bf16", "st-flash")


@dataclass(frozen=True, kw_only=True)
class QualityOptions:
    """Train on the same batches until NDCG@10 on the same dev set is reached; evaluating is not counted."""

    ndcg: float
    """The dev NDCG@10 to reach."""
    pairs: Annotated[str | None, tyro.conf.Positional] = None
    """Question/passage pairs, in any form that `embedtune train` takes; those of the built-in demo if not given."""
    dev: str | None = None
    """Pairs of the dev set; cut off PAIRS by passage if not given."""
    base: str | None = None
    """Hub id or folder of the encoder. all-MiniLM-L12-v2 if not given, or the demo's model for the demo's pairs."""
    method: AdapterMethod = "lora"
    """An adapter on the base as it is, or on a base in 4 bits (NF4, double quantisation)."""
    batch_size: int = 64
    """Pairs in a batch."""
    max_length: int = 256
    """Tokens read of a text."""
    epochs: int = 2
    """Passes over the training pairs, after which a runner gives up."""
    eval_steps: int = 5
    """Steps between evaluations."""
    dev_corpus: int = 2_000
    """Passages to search in at each evaluation."""
    lr: float = 2e-3
    """Peak learning rate of all, after a tenth of the steps; it falls as a cosine."""
    rounds: int = 1
    """How often each runner takes its turn."""
    rank: int = 16
    """Rank of the adapter."""
    alpha: float = 32.0
    """The adapter's update is scaled by alpha / rank."""
    runners: tuple[QualityRunner, ...] = ()
    """Who takes turns, in this order; embedtune and each peer that can run on this machine if not given."""
    device: DeviceName | None = None
    """Where to compute; CUDA where there is any if not given."""
    seed: int = 0
    """Of the split, the batches and the adapter's start."""
    time_limit: float | None = None
    """Seconds after which a process counts as failed; none if not given."""
    out: Path | None = None
    """JSON file to write everything measured to; it is written anew after each round."""

    def __post_init__(self) -> None:
        require_at_least(1, rounds=self.rounds, rank=self.rank, epochs=self.epochs)
        require_at_least(1, eval_steps=self.eval_steps, dev_corpus=self.dev_corpus)
        require_at_least(2, batch_size=self.batch_size)
        if not 0 < self.ndcg <= 1:
            raise ConfigError(f"--ndcg is {self.ndcg:g}, expected a number above 0 and up to 1, such as 0.8.")


def benchmark(options: QualityOptions) -> None:
    """Check that the runners agree, let them train in turn, print and write the results.

    Raises:
        UserError: the input can't be used.
        RunError: a runner failed, or two don't compute the same; what the others took has been told by then.
    """
    output.writable(options.out)
    device = device_name(options.device)
    facts = describe(device)
    output.show_hardware(facts)
    participants = Participants.of(options.runners, DEFAULT_RUNNERS, device, method=options.method)
    rounds: list[dict[str, QualityMeasurement]] = []
    with TemporaryDirectory() as folder:
        job, told = _job(options, device, Path(folder))
        participants.agree(Runners(job.train, Path(folder) / "agreement", options.time_limit), "agree-train")
        runners = Runners(job, Path(folder) / "quality", options.time_limit)
        header = {"benchmark": "quality-time", "job": told, "environment": facts}
        try:
            for number in range(1, options.rounds + 1):
                _round(runners, participants, rounds, f"round {number}/{options.rounds}")
                output.save_results(options.out, {**header, **_results(participants, rounds, options.ndcg)})
        finally:
            results = _results(participants, rounds, options.ndcg)
            output.show_quality(results["summary"], options.ndcg)
            output.show_failures(participants.failed)
            output.show_ratios(results["ratios"])
            output.write_results(options.out, {**header, **results})
    participants.complain()


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """The command line, or these arguments."""
    run(QualityOptions, benchmark, arguments, name="quality-time")


def _job(options: QualityOptions, device: DeviceName, folder: Path) -> tuple[QualityJob, dict[str, Any]]:
    """The job of all runners, its files written to the folder, and what the results say of it."""
    source = pairs_source(options.pairs)
    splits = prepare(DataConfig(train=source, dev=options.dev), seed=options.seed)
    batches = _batches(splits, options)
    write_batches(batches, folder / "batches.jsonl")
    task = dev_task(splits, size=options.dev_corpus, seed=options.seed)
    write_dev(task, splits.collection, folder / "dev.json")
    output.say(
        f"{len(batches)} batches of {options.batch_size} pairs in {options.epochs} epochs; dev: "
        f"{len(task.query_ids):,} questions, {len(task.passage_ids):,} passages, every {options.eval_steps} steps"
    )
    train = TrainJob(
        base=base_model(options.base, None, demo=options.pairs is None, folder=folder, seed=options.seed),
        batches=str(folder / "batches.jsonl"),
        batch_size=options.batch_size,
        max_length=options.max_length,
        method=options.method,
        rank=options.rank,
        alpha=options.alpha,
        device=device,
        lr=options.lr,
        schedule="cosine",
        warmup_fraction=0.1,
        weight_decay=0.01,
        scale=20.0,
        seed=options.seed,
        warmup=0,
    )
    job = QualityJob(train=train, dev=str(folder / "dev.json"), eval_steps=options.eval_steps, target=options.ndcg)
    facts = {"pairs_file": source, "dev_questions": len(task.query_ids), "dev_passages": len(task.passage_ids)}
    told = {**asdict(train), **facts, "batches": len(batches), "epochs": options.epochs, "rounds": options.rounds}
    return job, {**told, "eval_steps": options.eval_steps, "target": options.ndcg}


def _batches(splits: Splits, options: QualityOptions) -> list[Batch]:
    size, seed = options.batch_size, options.seed
    found = [
        batch
        for epoch in range(options.epochs)
        for batch in epoch_of_batches(splits.train, splits.collection, batch_size=size, seed=seed, epoch=epoch)
    ]
    if not found:
        raise DataError(
            f"{len(splits.train):,} training pairs give no batch of {size} in which no text comes twice.\n"
            "Type a smaller --batch-size."
        )
    return found


def _round(
    runners: Runners, participants: Participants, rounds: list[dict[str, QualityMeasurement]], label: str
) -> None:
    rounds.append({})
    for name, taken in participants.take_turns(runners, "time-quality", QualityMeasurement):
        rounds[-1][name] = taken
        best = max(taken.ndcg)
        output.say(f"{label}  {name}: {best:.4f} at best, {taken.steps[-1]} steps in {taken.seconds[-1]:.1f} s")


def _results(participants: Participants, rounds: list[dict[str, QualityMeasurement]], target: float) -> dict[str, Any]:
    return {
        "skipped": participants.skipped,
        "failed": participants.failed,
        "agreement": participants.compared,
        "summary": summarize_quality(rounds, target),
        "ratios": quality_ratios(rounds, target, refused=participants.disagreeing),
        "rounds": rounds,
    }


if __name__ == "__main__":
    main()
