"""`embedtune eval MODEL --test FILE [OPTIONS]`"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro

from embedtune.cli.console import Console
from embedtune.cli.network import use_cache_without_network
from embedtune.cli.options import parse
from embedtune.cli.report import check_page, write_report


@dataclass(frozen=True, kw_only=True)
class EvalOptions:
    """Measure retrieval with a model on the questions of a test file, or similarity on graded pairs."""

    model: Annotated[str, tyro.conf.Positional]
    """Hub id or folder of a Sentence Transformers model or a bare checkpoint."""
    test: str
    """Question/passage pairs, or graded pairs (sentence1, sentence2, score), in any form that `train` reads."""
    corpus: str | None = None
    """Further passages to search in."""
    labels: str | None = None
    """The `suspects.jsonl` of a run with its "label" filled in: also, instead or no."""
    against: tuple[str, ...] = ()
    """Further models, to compare with on the same questions and passages: hub ids (OWNER/NAME, OWNER/NAME@REVISION) or
    folders. The differences shown are to the first."""
    forgetting: tuple[str, ...] = ()
    """Files that tell what the model forgot since the first of --against, beside the built-in sets: graded pairs of
    sentences (sentence1, sentence2, score), or questions and passages."""
    out: Path | None = None
    """File to write the results to, as JSON."""
    report: Path | None = None
    """File to write the report to, as HTML."""
    suspects: Path | None = None
    """File to write suspected label errors to, as JSON Lines for --labels."""
    questions: Path | None = None
    """File to write each question's rank of the first right passage and NDCG@10 to, as JSON Lines."""
    anchor_column: str | None = None
    """Column of the questions, if its name is not recognised."""
    positive_column: str | None = None
    """Column of the passages, if its name is not recognised."""
    score_column: str | None = None
    """Column of labels (0 and 1) or of grades, if its name is not recognised; none for reading no scores."""
    revision: str | None = None
    """Branch, tag or commit of a hub model."""
    max_length: int | None = None
    """Tokens read of a text; the model's own setting if not given."""
    precision: Literal["auto", "fp32", "bf16", "fp16"] = "auto"
    """Arithmetic of the encoder."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where to compute."""
    seed: int = 0
    """Of the resampling."""
    trust_remote_code: bool = False
    """Run Python code that comes with the models named, those of --against too."""


def main(arguments: Sequence[str]) -> None:
    """Evaluate, print the table, write the files that were asked for."""
    options = parse(EvalOptions, arguments, command="eval")
    if options.report is not None:
        check_page(options.report)
    use_cache_without_network(options.model, options.test, options.corpus, *options.against, *options.forgetting)
    console = Console()
    console.note("loading libraries")
    from embedtune.config import DataConfig, ModelConfig
    from embedtune.inference import EvalOutput, evaluate_models

    results = evaluate_models(
        ModelConfig(
            base=options.model,
            revision=options.revision,
            max_length=options.max_length,
            precision=options.precision,
            device=options.device,
            trust_remote_code=options.trust_remote_code,
        ),
        DataConfig(
            test=options.test,
            corpus=options.corpus,
            labels=options.labels,
            anchor_column=options.anchor_column,
            positive_column=options.positive_column,
            score_column=options.score_column,
        ),
        against=options.against,
        forgetting=options.forgetting,
        out=EvalOutput(
            results=options.out, suspects=options.suspects, questions=options.questions, report=options.report
        ),
        seed=options.seed,
        reporter=console,
    )
    console.comparison(results)
    if options.report is not None:
        write_report(results, options.report, folder=options.report.parent)
    written = (
        ("results", options.out),
        ("report", options.report),
        ("suspects", options.suspects),
        ("questions", options.questions),
    )
    for what, path in written:
        if path is not None:
            console.note(f"{what}: {path}")
