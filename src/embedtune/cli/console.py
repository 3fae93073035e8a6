"""What a run looks like in a terminal: bars and a table there, plain lines in a file or a pipe."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rich.console import Console as RichConsole
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeRemainingColumn
from rich.table import Table

from embedtune.report.goals import goal
from embedtune.report.verdict import too_small, verdict

COLUMNS = {"base": "base", "tuned": "tuned", "model": "model", "against": "against", "bm25": "BM25", "hybrid": "hybrid"}
PLAIN_SECONDS = 10.0
"""Between two lines of training progress where there is no terminal."""


class Console:
    """Implements `progress.Reporter`."""

    def __init__(self) -> None:
        self._rich = RichConsole(highlight=False)
        self._started = time.perf_counter()

    def stage(self, title: str) -> None:
        self._rich.print(f"\n[bold]{title}[/bold]")

    def note(self, text: str) -> None:
        self._rich.print(f"  {text}", markup=False, soft_wrap=True)

    def warn(self, text: str) -> None:
        self._rich.print(f"  note: {text}", markup=False, style="yellow", soft_wrap=True)

    @contextmanager
    def counting(self, label: str, total: int | None) -> Iterator[Callable[[int], None]]:
        with self._bar("{task.completed:,.0f}" if total is None else "{task.completed:,.0f}/{task.total:,.0f}") as bar:
            task = bar.add_task(f"  {label}", total=total)
            yield lambda done: bar.advance(task, done)

    @contextmanager
    def training(self, *, done: int, steps: int) -> Iterator[TrainingLines]:
        with self._bar("step {task.completed}/{task.total}  {task.fields[detail]}") as bar:
            task = bar.add_task("  training", total=steps, completed=done, detail="")
            yield TrainingLines(self, bar, task, steps=steps, plain=not self._rich.is_terminal)

    def verdict(self, results: Mapping[str, Any], out: Path) -> None:
        """What a run found out, the table behind it, and what to do with the model."""
        self.stage("Result")
        self.note(verdict(results))
        self.comparison(results)
        minutes, seconds = divmod(round(time.perf_counter() - self._started), 60)
        train = results["train"]
        self.note(
            f"{minutes} min {seconds:02d} s in all; training {train['seconds']:.0f} s, "
            f"{train['pairs_per_second']:,.0f} pairs/s, {train['tokens_per_second']:,.0f} tokens/s, "
            f"peak memory {train['peak_memory_bytes'] / 2**30:.1f} GiB"
        )
        places = {"model": out / "model", "adapter": out / "adapter", "report": out / "report.html"}
        self.note("    ".join(f"{what}: {place}" for what, place in places.items() if place.exists()))
        self._rich.print(
            "\n    from sentence_transformers import SentenceTransformer\n"
            f'    model = SentenceTransformer("{out / "model"}")\n'
            + "".join(f"    {line}\n" for line in goal(results).usage),
            markup=False,
        )

    def comparison(self, results: Mapping[str, Any]) -> None:
        """One row a metric, one column a way of ranking, and the difference with its interval."""
        present, of = [key for key in COLUMNS if key in results], goal(results)
        passages = results["data"].get("corpus_passages")
        searched = "" if passages is None else f", {passages:,} passages"
        table = Table(title=f"{of.number(results):,} test {of.item}s{searched}", title_justify="left")
        table.add_column("metric")
        for key in present:
            table.add_column(COLUMNS[key], justify="right")
        delta = results.get("delta", {})
        if delta:
            table.add_column("difference [95 % interval]", justify="right")
        for metric in of.shown:
            cells = [f"{results[key][metric]:.4f}" for key in present]
            table.add_row(metric, *cells, *([_interval(delta[metric])] if delta else []))
        self._rich.print(table)
        self._further(results)
        if (warning := too_small(results)) is not None:
            self.warn(warning)

    def table(self, title: str, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
        """Any table; its first column is to the left."""
        table = Table(title=title, title_justify="left")
        for number, column in enumerate(columns):
            table.add_column(column, justify="right" if number else "left")
        for row in rows:
            table.add_row(*row)
        self._rich.print(table)

    def _further(self, results: Mapping[str, Any]) -> None:
        """One row a model given with --against, except one that has a column of its own."""
        further, of = results.get("further", [])["against" in results :], goal(results)
        if not further:
            return
        table = Table(title="further models on the same test", title_justify="left")
        table.add_column("model", overflow="fold")
        for metric in of.further:
            table.add_column(metric, justify="right")
        table.add_column(f"{of.metric} of {'tuned' if 'tuned' in results else 'model'} less it", justify="right")
        for other in further:
            cells = [f"{other['metrics'][metric]:.4f}" for metric in of.further]
            table.add_row(other["model"], *cells, _interval(other["delta"][of.metric]))
        self._rich.print(table)

    def _bar(self, numbers: str) -> Progress:
        return Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=24),
            TextColumn(numbers),
            TimeRemainingColumn(),
            console=self._rich,
            transient=True,
            disable=not self._rich.is_terminal,
        )


class TrainingLines:
    """Implements `progress.TrainingReporter`: moves the bar, or prints a line now and then."""

    def __init__(self, console: Console, bar: Progress, task: TaskID, *, steps: int, plain: bool) -> None:
        self._console, self._bar, self._task, self._steps, self._plain = console, bar, task, steps, plain
        self._printed = time.perf_counter()
        self._first: tuple[float, int] | None = None

    def step(self, *, step: int, loss: float, lr: float, pairs_per_second: float) -> None:
        detail = f"loss {loss:.3f}  {pairs_per_second:,.0f} pairs/s"
        self._bar.update(self._task, completed=step, detail=detail)
        now = time.perf_counter()
        self._first = self._first or (now, step)
        if self._plain and now - self._printed > PLAIN_SECONDS:
            started, first_step = self._first
            left = (now - started) / max(1, step - first_step) * (self._steps - step)
            self._console.note(f"step {step}/{self._steps}  {detail}  {left:.0f} s left")
            self._printed = now

    def evaluated(self, *, step: int, metric: str, value: float, best: bool) -> None:
        self._console.note(f"step {step}/{self._steps}  dev {metric} {value:.4f}{'  kept so far' if best else ''}")


def _interval(difference: Mapping[str, Any]) -> str:
    low, high = difference["ci95"]
    return f"{difference['mean']:+.4f} [{low:+.4f}, {high:+.4f}]"
