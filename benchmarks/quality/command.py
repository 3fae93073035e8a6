"""`python -m benchmarks quality [DESCRIPTION.toml]`: run the cells, print and write what they come to."""

from __future__ import annotations

import signal
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from types import FrameType
from typing import Annotated, Any, NoReturn

import tyro

from benchmarks import cli, output
from benchmarks.hardware import describe
from benchmarks.quality import tables
from benchmarks.quality.cell import Cell, Checksums, Store, cells_of
from benchmarks.quality.commands import Commands
from benchmarks.quality.description import Description, ablated, demo_description, read_description
from benchmarks.quality.running import Run, run_cells, split_done
from benchmarks.quality.summary import Cells, Measured, compare, lacks, measured_of, remarks, summarize
from embedtune.errors import ConfigError, RunError, TrainingInterrupted
from embedtune.export.run_folder import RunLock


@dataclass(frozen=True, kw_only=True)
class QualityOptions:
    """Run recipes over several data sets and seeds, and compare them with the first one, seed by seed."""

    description: Annotated[Path | None, tyro.conf.Positional] = None
    """TOML file with the data sets, variants and seeds; two variants on the built-in demo's data if not given."""
    out: Path = Path("embedtune-quality")
    """Folder for the cells. Those that are done there are not run again."""
    ablation: bool = False
    """Run the full variant of [ablation], and it without each of its parts, instead of the variants."""
    jobs: int = 1
    """Cells that run at a time."""
    keep_models: bool = False
    """Keep all that a run writes, instead of results.json and config.toml."""
    time_limit: float | None = None
    """Seconds after which a cell's process counts as failed; none if not given."""
    json: Path | None = None
    """JSON file to write everything measured to."""
    markdown: Path | None = None
    """File to write the tables to, as Markdown."""

    def __post_init__(self) -> None:
        cli.require_at_least(1, jobs=self.jobs)
        if self.time_limit is not None and self.time_limit <= 0:
            raise ConfigError(f"--time-limit is {self.time_limit:g}, expected a number of seconds above 0.")


def benchmark(options: QualityOptions) -> None:
    """Run what is not done yet; print and write what all of it comes to, also if it is stopped on the way.

    Raises:
        UserError: the description can't be used.
        RunError: a cell failed; the others have been told by then.
        TrainingInterrupted: it was stopped.
    """
    for option, path in (("--json", options.json), ("--markdown", options.markdown)):
        output.writable(path, option=option)
    description = demo_description() if options.description is None else read_description(options.description)
    if options.ablation:
        description = ablated(description)
    facts = describe(cli.device_name(None))
    output.show_hardware(facts)
    store, cells = Store(options.out, Checksums()), cells_of(description)
    threads = max(1, facts["cores"] // options.jobs) if options.jobs > 1 else None
    run = Run()
    options.out.mkdir(parents=True, exist_ok=True)
    with RunLock(options.out) as lock:
        lock.take()
        commands = Commands(threads=threads, time_limit=options.time_limit)
        stopped = _run_all(options, cells, store, commands, run, metric=description.metric)
    _tell(options, description, cells, run, store, facts)
    if stopped:
        raise TrainingInterrupted("stopped. What is done is kept; to go on, type the same command.")
    if run.failed:
        raise RunError(f"{len(run.failed)} of {len(cells)} cells failed; type the same command to try them again.")


def _run_all(
    options: QualityOptions, cells: Sequence[Cell], store: Store, commands: Commands, run: Run, *, metric: str
) -> bool:
    """Run what is not done, and say what each comes to; returns whether it was stopped on the way."""
    done, to_run = split_done(cells, store)
    output.say(f"{len(cells)} cells: {len(done)} are done, {len(to_run)} to run, {options.jobs} at a time")
    run.done += done
    working = run_cells(to_run, cells, store, commands, run, jobs=options.jobs, keep_all=options.keep_models)
    try:
        with _sigterm_like_ctrl_c(), closing(working) as finished:
            for number, cell in enumerate(finished, 1):
                output.say(f"[{number}/{len(to_run)}] {cell.name}: {_came_to(cell, run, store, metric)}")
    except KeyboardInterrupt:
        return True
    return False


def collect(run: Run, store: Store, description: Description) -> dict[str, dict[str, dict[int, Measured]]]:
    """Data set to variant to seed to what was measured; a cell that says nothing of the metric counts as failed."""
    found: dict[str, dict[str, dict[int, Measured]]] = {
        data: {variant: {} for variant in description.variants} for data in description.data
    }
    for cell in sorted(run.done, key=lambda one: one.seed):
        results = store.results(cell)
        if lacking := lacks(results, description.metric):
            run.failed[cell] = lacking
        else:
            found[cell.data][cell.variant][cell.seed] = measured_of(results, description.metric)
    return found


def _tell(
    options: QualityOptions,
    description: Description,
    cells: Sequence[Cell],
    run: Run,
    store: Store,
    facts: dict[str, Any],
) -> None:
    """Print the tables, and write the files that were asked for."""
    measured = collect(run, store, description)
    grids = _grids(description, measured, ablation=options.ablation)
    for grid in grids:
        output.show_grid(grid.title, grid.headings, grid.rows)
        for note in grid.notes:
            output.say(note)
    if grids:
        output.say(tables.HOW_TO_READ)
    failed = {cell.name: reason for cell, reason in run.failed.items()}
    said = [*_remarks_on_all(run, store, measured), *tables.failures(failed)]
    for line in said:
        output.say(line)
    if options.json is not None:
        document = {
            **_document(description, measured, lost=options.ablation),
            "environment": facts,
            "failed": failed,
            "not_run": [cell.name for cell in cells if cell not in run.done and cell not in run.failed],
            "notes": said,
        }
        output.write_results(options.json, document)
    if options.markdown is not None:
        text = tables.markdown(grids) + "".join(f"\n{line}\n" for line in said)
        options.markdown.write_text(text, encoding="utf-8")
        output.say(f"written: {options.markdown}")


def _document(description: Description, measured: Mapping[str, Cells], *, lost: bool) -> dict[str, Any]:
    """What the JSON file says of the cells."""
    first = description.first
    return {
        "benchmark": "quality",
        "description": asdict(description),
        "summary": {data: summarize(found, first) for data, found in measured.items()},
        "remarks": {data: remarks(found, first) for data, found in measured.items()},
        "compared": compare(measured, first, lost=lost),
        "cells": measured,
    }


def _grids(description: Description, measured: Mapping[str, Cells], *, ablation: bool) -> list[tables.Grid]:
    first, metric, grids = description.first, description.metric, list[tables.Grid]()
    for data, found in measured.items():
        rows = summarize(found, first)
        if rows:
            notes = remarks(found, first)
            grids.append(tables.quality_grid(data, rows, first, metric=metric, notes=notes))
            grids.append(tables.cost_grid(data, rows))
    compared = compare(measured, first, lost=ablation)
    if ablation:
        grids.append(tables.ablation_grid(compared, list(measured), first, metric=metric))
    elif len(measured) > 1:
        grids.append(tables.compared_grid(compared, list(measured), first, metric=metric))
    return grids


def _came_to(cell: Cell, run: Run, store: Store, metric: str) -> str:
    if cell in run.failed:
        return f"failed: {run.failed[cell]}"
    results = store.results(cell)
    if lacking := lacks(results, metric):
        return lacking
    return f"{metric} {results['tuned'][metric]:.4f}, base {results['base'][metric]:.4f}"


def _remarks_on_all(run: Run, store: Store, measured: Mapping[str, Cells]) -> list[str]:
    """What makes cells hard to compare, and what the peers do without."""
    said = []
    if len({store.code(cell) for cell in run.done}) > 1:
        said.append("Look at this: some cells were run by other code of embedtune than others; another --out runs all.")
    devices = {one.device for found in measured.values() for seeds in found.values() for one in seeds.values()}
    if len(devices) > 1:
        said.append(f"Look at this: not all cells ran on the same: {'; '.join(sorted(devices))}.")
    lacking: dict[str, set[str]] = {}
    for cell in run.done:
        if cell.peer is not None:
            lacking.setdefault(cell.variant, set()).update(store.results(cell)["peer"]["not_carried_over"])
    said += [f"{name} does without: {', '.join(sorted(settings))}." for name, settings in lacking.items() if settings]
    return said


@contextmanager
def _sigterm_like_ctrl_c() -> Iterator[None]:
    """So that no process of a cell outlives this one."""

    def stop(number: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    previous = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, previous)


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """The command line, or these arguments."""
    cli.run(QualityOptions, benchmark, arguments, name="quality")
