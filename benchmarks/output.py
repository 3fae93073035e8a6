"""What a benchmark prints and writes; nothing else here prints."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, is_dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from benchmarks.hardware import OPTIONAL_PACKAGES
from benchmarks.jobs import CHECKPOINTING
from benchmarks.records import GemmRates, Workload
from benchmarks.summary import EncodeSummary, MethodSummary, QualitySummary, Ratio, TrainSummary
from embedtune.errors import OutputError

Ratios = Mapping[str, Mapping[str, Ratio]]

_WIDTH = 120
"""Columns of a table where there is no terminal."""

_console = Console(highlight=False, soft_wrap=True, width=None if sys.stdout.isatty() else _WIDTH)
_errors = Console(highlight=False, soft_wrap=True, stderr=True)


def say(text: str) -> None:
    _console.print(text, markup=False)


def fail(text: str) -> None:
    _errors.print(text, markup=False)


def show_hardware(facts: Mapping[str, Any]) -> None:
    name = facts["cpu"] if facts["device"] == "cpu" else facts["device_name"]
    flags = f" ({', '.join(facts['cpu_flags'])})" if facts["cpu_flags"] else ""
    say(f"{name}, {facts['cores']} cores{flags}, {facts['threads']} threads")
    packages = ("torch", "transformers", "sentence-transformers", "peft", *OPTIONAL_PACKAGES)
    say(", ".join(f"{package} {facts[package]}" for package in packages if facts[package] is not None))


def show_work(work: Workload, gemm: GemmRates) -> None:
    say(
        f"timed in each round: {work.pairs:,} pairs, {work.tokens:,} tokens; "
        f"padded, {work.padding:.0%} of the positions would be padding"
    )
    layer, (square_fp32, square_bf16) = " x ".join(map(str, gemm.shape)), gemm.best_squares
    say(f"GEMM of the model's own layer, {layer}: fp32 {_teraflops(gemm.fp32)}, bf16 {_teraflops(gemm.bf16)}")
    say(
        f"best square GEMM: fp32 {_teraflops(gemm.square_fp32)} ({square_fp32:,} wide), "
        f"bf16 {_teraflops(gemm.square_bf16)} ({square_bf16:,} wide)"
    )


def show_train(summaries: Mapping[str, TrainSummary]) -> None:
    table = Table(title="training, medians over the rounds", title_justify="left")
    headings = ("runner", "pairs/s", "tokens/s", "step", "data", "peak", "above load", "MFU", "of own GEMM", "loss")
    for place, heading in enumerate(headings):
        table.add_column(heading, justify="right" if place else "left", no_wrap=True)
    for runner, s in summaries.items():
        table.add_row(
            f"{runner} ({s.precision})",
            f"{s.pairs_per_second:,.1f}",
            f"{s.tokens_per_second:,.0f}",
            _seconds(s.step_seconds),
            _seconds(s.data_seconds),
            _gibibytes(s.peak_bytes),
            _gibibytes(s.peak_above_loaded_bytes),
            f"{s.flop_utilisation:.1%}",
            f"{s.gemm_share:.1%}",
            f"{s.mean_loss:.4f}",
        )
    _console.print(table)


def show_quality(summaries: Mapping[str, QualitySummary], target: float) -> None:
    table = Table(title=f"training to dev NDCG@10 of {target:g}, medians over the rounds", title_justify="left")
    for place, heading in enumerate(("runner", "weights", "before", "best", "steps", "time")):
        table.add_column(heading, justify="right" if place > 1 else "left", no_wrap=True)
    for runner, s in summaries.items():
        reached = ("not reached", "–") if s.seconds is None else (f"{s.steps:,.0f}", _seconds(s.seconds))
        table.add_row(f"{runner} ({s.precision})", s.weights, f"{s.base:.4f}", f"{s.best:.4f}", *reached)
    _console.print(table)


def show_encode(summaries: Mapping[str, EncodeSummary]) -> None:
    table = Table(title="encoding, medians over the rounds", title_justify="left")
    for place, heading in enumerate(("runner", "texts/s", "peak", "above load")):
        table.add_column(heading, justify="right" if place else "left", no_wrap=True)
    for runner, s in summaries.items():
        table.add_row(
            f"{runner} ({s.precision})",
            f"{s.texts_per_second:,.0f}",
            _gibibytes(s.peak_bytes),
            _gibibytes(s.peak_above_loaded_bytes),
        )
    _console.print(table)


def show_methods(summaries: Mapping[str, Mapping[str, MethodSummary | None]]) -> None:
    title = "methods, medians over the rounds, largest memory; what the bare process held is taken off"
    table = Table(title=title, title_justify="left")
    headings = ("size", "method", "checkpointing", "loaded", "peak loading", "peak", "step", "pairs/s", "loss", "last")
    for place, heading in enumerate(headings):
        table.add_column(heading, justify="right" if place > 2 else "left", no_wrap=True)
    for size, cells in summaries.items():
        for cell, summary in cells.items():
            checkpointing = "yes" if cell.endswith(CHECKPOINTING) else "no"
            table.add_row(size, cell.removesuffix(CHECKPOINTING), checkpointing, *_method_columns(summary))
        table.add_section()
    _console.print(table)


def _method_columns(summary: MethodSummary | None) -> tuple[str, ...]:
    if summary is None:
        return "–", "–", "out of memory", "–", "–", "–", "–"
    return (
        _gibibytes(summary.loaded_bytes),
        _gibibytes(summary.load_peak_bytes),
        _gibibytes(summary.peak_bytes),
        _seconds(summary.step_seconds),
        f"{summary.pairs_per_second:,.1f}",
        f"{summary.first_loss:.4f}",
        f"{summary.last_loss:.4f}",
    )


def show_grid(title: str, headings: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """A table of texts; the first column is a name, the others are numbers."""
    table = Table(title=title, title_justify="left")
    for place, heading in enumerate(headings):
        table.add_column(heading, justify="right" if place else "left")
    for row in rows:
        table.add_row(*row)
    _console.print(table)


def show_ratios(ratios: Ratios) -> None:
    for ours, peers in ratios.items():
        for peer, r in peers.items():
            say(f"{ours} / {peer}: {r.median:.2f}x  (rounds: {r.lowest:.2f} to {r.highest:.2f})")


def show_failures(failed: Mapping[str, str]) -> None:
    for runner, reason in failed.items():
        say(f"{runner}: failed at {reason}")


def writable(out: Path | None, *, option: str = "--out") -> None:
    """Refuse a file that can't be written before hours are spent on its content.

    Raises:
        OutputError: its folder does not exist.
    """
    if out is not None and not out.absolute().parent.is_dir():
        raise OutputError(f"{option} {out}: its folder {out.absolute().parent} does not exist.")


def save_results(out: Path | None, results: Mapping[str, Any]) -> None:
    """Write what there is so far."""
    if out is not None:
        out.write_text(json.dumps(results, indent=2, default=_plain) + "\n", encoding="utf-8")


def write_results(out: Path | None, results: Mapping[str, Any]) -> None:
    """Write them and say so."""
    save_results(out, results)
    if out is not None:
        say(f"written: {out}")


def _plain(value: object) -> Any:
    """Dataclasses for JSON."""
    if is_dataclass(value) and not isinstance(value, type):
        return asdict(value)
    raise TypeError(f"{type(value).__name__} has no place in the results")


def _teraflops(value: float) -> str:
    return f"{value / 1e12:.2f} TFLOP/s"


def _seconds(value: float) -> str:
    return f"{value:.2f} s" if value >= 1 else f"{value * 1000:.1f} ms"


def _gibibytes(value: int) -> str:
    return f"{value / 2**30:.2f} GiB"
