"""Runs the cells that are not done, some at a time; one that fails is left out, with its reason."""

from __future__ import annotations

from collections.abc import Generator, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field

from benchmarks.quality.cell import Cell, Store
from benchmarks.quality.commands import CommandFailedError, Commands, installed_command
from benchmarks.quality.peer_cell import run_peer


@dataclass
class Run:
    """What became of the cells."""

    done: list[Cell] = field(default_factory=list)
    failed: dict[Cell, str] = field(default_factory=dict)
    """With the reason."""


def split_done(cells: Sequence[Cell], store: Store) -> tuple[list[Cell], list[Cell]]:
    """The cells that are done, and those to run."""
    done = [cell for cell in cells if store.is_done(cell, with_splits=_is_source(cell, cells))]
    return done, [cell for cell in cells if cell not in done]


def run_cells(
    to_run: Sequence[Cell],
    every: Sequence[Cell],
    store: Store,
    commands: Commands,
    run: Run,
    *,
    jobs: int,
    keep_all: bool,
) -> Generator[Cell, None, None]:
    """Run the cells, and yield each at its end, whether it is done or failed.

    A peer's cell starts once all others are over. If the caller stops early, the processes are ended, and what they
    had not finished is removed.

    Args:
        to_run: the cells.
        every: all cells that there are, the finished ones too.
        store: where they lie.
        commands: starts their processes.
        run: gets what became of them.
        jobs: how many run at a time.
        keep_all: whether models and all else of a run are kept.
    """
    pool = ThreadPoolExecutor(jobs)
    try:
        for peers in (False, True):
            futures: dict[Future[None], Cell] = {}
            for cell in (cell for cell in to_run if (cell.peer is not None) is peers):
                if cell.like is not None and cell.like not in run.done:
                    run.failed[cell] = f"the cell that it is like, {cell.like.name}, is not there"
                    yield cell
                    continue
                keep = {"keep_all": keep_all, "with_splits": _is_source(cell, every)}
                futures[pool.submit(_run, cell, store, commands, **keep)] = cell
            yield from _finished(futures, run)
    finally:
        commands.stop()
        pool.shutdown(wait=True, cancel_futures=True)


def _finished(futures: dict[Future[None], Cell], run: Run) -> Iterator[Cell]:
    waiting = set(futures)
    while waiting:
        over, waiting = wait(waiting, return_when=FIRST_COMPLETED)
        for future in over:
            cell = futures[future]
            try:
                future.result()
                run.done.append(cell)
            except CommandFailedError as error:
                run.failed[cell] = str(error)
            yield cell


def _run(cell: Cell, store: Store, commands: Commands, *, keep_all: bool, with_splits: bool) -> None:
    folder = store.start(cell)
    try:
        if cell.peer is None:
            command = [*installed_command(), "train", *cell.arguments]
            commands.run([*command, "--seed", str(cell.seed), "--out", str(folder.root)], store.log(cell))
        else:
            run_peer(cell, store, commands)
        store.finish(cell, keep_all=keep_all, with_splits=with_splits)
    except BaseException:
        store.abandon(cell)
        raise


def _is_source(cell: Cell, cells: Sequence[Cell]) -> bool:
    """Whether a peer takes the cell's settings and rows."""
    return any(other.like == cell for other in cells)
