"""Measure a finished model on a test file."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from embedtune.config import DataConfig, ModelConfig
from embedtune.data.clean import CleanRows, CollectionBuilder
from embedtune.data.collection import Collection
from embedtune.data.labels import apply_labels, read_labels
from embedtune.data.prepare import asked_columns, described, refuse_for_graded, respelled
from embedtune.data.read import read, read_passages
from embedtune.data.trainable import check_graded
from embedtune.errors import ConfigError, OutputError
from embedtune.evaluation.general import general_sets
from embedtune.evaluation.questions import write_questions
from embedtune.evaluation.suspects import write_suspects
from embedtune.exams import set_exam
from embedtune.export.run_folder import write_json
from embedtune.facts import hub_revisions
from embedtune.loading import check_loadable, load, other_models, tokenize
from embedtune.measuring import evaluate_others
from embedtune.paths import expanded
from embedtune.progress import Reporter, SilentReporter
from embedtune.report.results import build_results, environment


@dataclass(frozen=True, kw_only=True)
class EvalOutput:
    """Files to write what was found to, each only if given."""

    results: Path | None = None
    """JSON."""
    suspects: Path | None = None
    """Suspected label errors, as JSON Lines."""
    questions: Path | None = None
    """What each question got, as JSON Lines."""
    report: Path | None = None
    """A page that the caller will make of the results; here it is only checked."""

    def check(self, sources: Iterable[str | None]) -> None:
        """Whether they can be written, as far as their folders tell, and nothing that is read would be lost.

        Args:
            sources: what is read: files among them, those that are not given as `None`.

        Raises:
            OutputError: a folder does not exist, or is where a file should be, or a file is read or written twice.
        """
        files = (
            ("out", self.results),
            ("suspects", self.suspects),
            ("questions", self.questions),
            ("report", self.report),
        )
        read_from = [expanded(source) for source in sources if source]
        taken = [path for path in read_from if os.path.isfile(path)]
        for option, path in files:
            if path is not None and any(_same_file(path, other) for other in taken):
                raise OutputError(f"--{option} {path} is another file of this command; expected one of its own.")
            taken += [path] if path is not None else []
            if path is not None and not path.absolute().parent.is_dir():
                raise OutputError(f"--{option} {path}: its folder {path.absolute().parent} does not exist.")
            if path is not None and path.is_dir():
                raise OutputError(
                    f"--{option} {path} is a folder, expected a file.\nType:  --{option} {path / option}.json"
                )


def _same_file(one: Path, other: Path) -> bool:
    return one.absolute() == other.absolute() or (one.exists() and other.exists() and one.samefile(other))


def evaluate_models(
    model: ModelConfig,
    data: DataConfig,
    *,
    against: Sequence[str] = (),
    forgetting: Sequence[str] = (),
    out: EvalOutput | None = None,
    seed: int = 0,
    reporter: Reporter | None = None,
) -> dict[str, Any]:
    """Retrieval metrics of a model, and of others if given, with BM25 and the hybrid of both beside them.

    Of graded pairs it is the correlations of its cosines with the grades, and nothing is searched.

    Args:
        model: `base` is the model to measure.
        data: `test`, `corpus` and `labels`; the corpus searched is the passages of the first two.
        against: hub ids or folders of further models; differences are model minus further, "delta" that to the first.
        forgetting: files of sets that the first of these and the model are compared on, beside the built-in ones.
        out: files to write.
        seed: of the resampling.
        reporter: is told how it goes.

    Raises:
        UserError: the data, a model or an output file can't be used.
    """
    reporter, out = reporter or SilentReporter(), out or EvalOutput()
    out.check((data.test, data.corpus, data.labels, *forgetting))
    if forgetting and not against:
        raise ConfigError("--forgetting compares two models.\nType:  --against MODEL --forgetting FILE")
    collection, test = _test_rows(data, reporter)
    if collection.graded and out.suspects is not None:
        raise ConfigError(f"--suspects {out.suspects}: the pairs are graded, so no label can be wrong. Leave it out.")
    if collection.graded and out.questions is not None:
        raise ConfigError(f"--questions {out.questions}: the pairs are graded, so nothing is asked. Leave it out.")
    sets = general_sets(forgetting) if against else []
    others = check_loadable(other_models(model, against))
    encoder = load(model, reporter)
    texts = tokenize(encoder, collection, reporter)
    exam = set_exam(collection, test.pairs, reporter, seed=seed)
    models = {"model": exam.examine(encoder, texts, sets, reporter, label=model.base, sizes=True)}
    further = {}
    for first in list(others)[:1]:
        second = load(others[first], reporter)
        own = tokenize(second, collection, reporter)
        models = {"against": exam.examine(second, own, sets, reporter, label=first)} | models
        further[first] = models["against"].evaluation
        del second
    rest = {name: other for name, other in others.items() if name not in further}
    further |= evaluate_others(rest, exam.evaluate, collection, reporter)
    found = exam.assess(models, further)
    if found.suspects is not None:
        found.sections["suspects"]["file"] = None if out.suspects is None else str(out.suspects)
    results = build_results(
        base_model=model.base,
        seed=seed,
        evaluations=found.evaluations,
        delta=found.delta,
        against_model=next(iter(further), None),
        data={**exam.facts(texts, encoder), "dropped": dict(test.dropped)},
        environment={
            **environment(encoder.device, encoder.source.precision),
            **hub_revisions(encoder.source, others, {}),
        },
        **found.sections,
    )
    if out.suspects is not None and found.suspects is not None:
        write_suspects(out.suspects, found.suspects)
    if out.questions is not None and found.questions is not None:
        write_questions(out.questions, found.questions)
    if out.results is not None:
        write_json(out.results, results)
    return results


def _test_rows(data: DataConfig, reporter: Reporter) -> tuple[Collection, CleanRows]:
    assert data.test is not None
    builder = CollectionBuilder()
    table = read(data.test, columns=asked_columns(data), split="test")
    test = builder.add(table)
    if table.note:
        reporter.note(described(table, test))
    if table.warning:
        reporter.warn(table.warning)
    if table.graded:
        refuse_for_graded(data)
        check_graded(test.pairs, "to test on", data.test)
    if data.corpus is not None:
        test.dropped.update(builder.add_passages(read_passages(data.corpus)))
    for note in respelled(builder):
        reporter.note(note)
    if data.labels is not None:
        apply_labels(read_labels(data.labels), builder.collection)
    return builder.finish(), test
