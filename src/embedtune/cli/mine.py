"""`embedtune mine TRAIN --base MODEL --out mined.jsonl[.gz]`"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro

from embedtune.cli.console import Console
from embedtune.cli.network import use_cache_without_network
from embedtune.cli.options import parse
from embedtune.config import DataConfig, MiningConfig, ModelConfig
from embedtune.errors import brief

if TYPE_CHECKING:
    from embedtune.negatives import Example

SHOWN_CHARACTERS = 300
"""Of each text of an example."""


@dataclass(frozen=True, kw_only=True)
class MineOptions:
    """Add hard negatives to question/passage pairs: passages of other pairs that look like an answer."""

    train: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="TRAIN")]
    """Question/passage pairs, in any form that `train` reads."""
    out: Path
    """File to write: .jsonl or .jsonl.gz with id, anchor, positive, negative_1 ... and a judge's scores, which `train`
    reads."""
    test: str | None = None
    """Pairs to be tested on: what they share with TRAIN is left out, and their passages are never mined."""
    dev: str | None = None
    """Pairs to choose the checkpoint on, likewise."""
    labels: str | None = None
    """The `suspects.jsonl` of a run with its "label" filled in: also, instead or no."""
    near_duplicates: float = DataConfig.near_duplicates
    """Share of the shorter passage's five-word runs from which two passages count as one, up to 1; with 0 only the same
    text does."""
    anchor_column: str | None = None
    """Column of the questions, if its name is not recognised."""
    positive_column: str | None = None
    """Column of the passages that answer them, if its name is not recognised."""
    negative_columns: tuple[str, ...] = ()
    """Columns of passages that don't answer the question, if their names are not recognised; they are kept."""
    mining: MiningConfig = field(default_factory=MiningConfig)
    base: str = ModelConfig.base
    """Hub id or folder of the model to mine with."""
    revision: str | None = None
    """Branch, tag or commit of a hub model."""
    max_length: int | None = None
    """Tokens read of a text; the model's own setting if not given."""
    precision: Literal["auto", "fp32", "bf16", "fp16"] = "auto"
    """Arithmetic of the encoder."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where to compute."""
    query_prompt: str | None = None
    """Text before every query; the model's own if not given."""
    passage_prompt: str | None = None
    """Text before every passage, likewise."""
    seed: int = 0
    """Of what --mine-sampling random draws."""
    trust_remote_code: bool = False
    """Run Python code that comes with the model, or the judge."""


def main(arguments: Sequence[str]) -> None:
    """Mine, write the file, say what was found."""
    options = parse(MineOptions, arguments, command="mine")
    use_cache_without_network(options.base, options.train, options.test, options.dev, options.mining.judge)
    console = Console()
    console.note("loading libraries")
    from embedtune.negatives import mine_file

    mined, examples = mine_file(
        ModelConfig(
            base=options.base,
            revision=options.revision,
            max_length=options.max_length,
            precision=options.precision,
            device=options.device,
            query_prompt=options.query_prompt,
            passage_prompt=options.passage_prompt,
            trust_remote_code=options.trust_remote_code,
        ),
        DataConfig(
            train=options.train,
            test=options.test,
            dev=options.dev,
            labels=options.labels,
            near_duplicates=options.near_duplicates,
            anchor_column=options.anchor_column,
            positive_column=options.positive_column,
            negative_columns=options.negative_columns,
        ),
        options.mining,
        options.out,
        seed=options.seed,
        reporter=console,
    )
    _print(console, mined.facts, examples)
    console.note(f"pairs: {options.out}")


def _print(console: Console, facts: Mapping[str, Any], examples: Iterable[Example]) -> None:
    console.note(
        f"{facts['mined']:,} negatives added to {facts['rows']:,} pairs, out of {facts['candidates']:,} passages; "
        f"{facts['short_rows']:,} pairs got fewer than {facts['asked']}"
    )
    refused = [f"{count:,} {reason.replace('_', ' ')}" for reason, count in facts["refused"].items() if count]
    if refused:
        console.note("refused: " + ", ".join(refused))
    means = facts["mean_scores"]
    if means["negatives"] is not None:
        by = "model" if facts["judge"] is None else "judge"
        console.note(f"mean score by the {by}: positives {means['positives']:.3f}, mined {means['negatives']:.3f}")
    for example in examples:
        console.note(f"hard:  {brief(example.question, SHOWN_CHARACTERS)}")
        console.note(f"  {example.positive_score:.3f}  positive  {brief(example.positive, SHOWN_CHARACTERS)}")
        console.note(f"  {example.negative_score:.3f}  negative  {brief(example.negative, SHOWN_CHARACTERS)}")
