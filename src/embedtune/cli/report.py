"""`embedtune report RUN`"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import tyro

from embedtune.cli.console import Console
from embedtune.cli.options import parse
from embedtune.errors import DataError, OutputError, brief


@dataclass(frozen=True, kw_only=True)
class ReportOptions:
    """Make the report of a run or an evaluation again from its results."""

    source: Annotated[Path, tyro.conf.Positional]
    """A run's folder, or a results file that `embedtune eval --out` wrote; the report is written beside it."""


def main(arguments: Sequence[str]) -> None:
    """Read the results, write the page, say where it is."""
    options = parse(ReportOptions, arguments, command="report")
    results = options.source / "results.json" if options.source.is_dir() else options.source
    # Several evaluations may lie in one folder.
    page = (
        results.with_name("report.html")
        if results.name == "results.json"
        else results.with_name(f"{results.stem}.html")
    )
    check_page(page)
    write_report(read_results(results), page, folder=results.parent)
    Console().note(f"report: {page}")


def read_results(path: Path) -> dict[str, Any]:
    """The content of a results file.

    Raises:
        DataError: there is no such file, or it does not hold results that this version reads.
    """
    from embedtune.report.results import SCHEMA

    hint = "expected the folder of a run, or a file that `embedtune eval --out` wrote"
    try:
        results = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise DataError(f"{path}: No such file; {hint}.") from None
    except OSError as error:
        raise DataError(f"{path}: {error.strerror}; {hint}.") from error
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path} is damaged or no JSON ({error}); {hint}.") from error
    if not isinstance(results, dict) or "schema" not in results:
        raise DataError(f'{path} holds no results of embedtune: there is no "schema" in it; {hint}.')
    if results["schema"] != SCHEMA:
        raise DataError(
            f"{path} has schema {brief(results['schema'])}, expected {SCHEMA}.\n"
            "Type:  pip install --upgrade embedtune  (or the version that wrote the file)"
        )
    return results


def check_page(page: Path) -> None:
    """Refuse a place where no report can be written, before anything is computed.

    Raises:
        OutputError: it is a folder, or in none.
    """
    if page.is_dir():
        raise OutputError(f"{page} is a folder, expected a file to write the report to.\nType:  {page / 'report.html'}")
    if not page.absolute().parent.is_dir():
        raise OutputError(f"{page}: its folder {page.absolute().parent} does not exist.")


def write_report(results: dict[str, Any], page: Path, *, folder: Path) -> None:
    """Write the page of these results.

    Args:
        results: of a run or an evaluation.
        page: file to write.
        folder: the run's folder, for the commands on the page.

    Raises:
        DataError: parts of the results that every page needs are missing or of another form.
        OutputError: the file can't be written.
    """
    from embedtune.export.run_folder import write_text
    from embedtune.report.html import build_html

    try:
        html = build_html(results, folder)
    except (LookupError, TypeError, ValueError, AttributeError, ArithmeticError, RecursionError) as error:
        raise DataError(
            f"The results can't be shown, something in them is missing or of another form than expected "
            f"({type(error).__name__}: {brief(str(error), 200)}).\n"
            "Make them again, with `embedtune train` or `embedtune eval --out`."
        ) from error
    try:
        write_text(page, html)
    except OSError as error:
        raise OutputError(
            f"{page} can't be written: {error.strerror}.\nType the path of a folder you may write to."
        ) from error
