"""Mine hard negatives for the pairs of a file, and write them to another one that `embedtune train` reads."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from embedtune.config import DataConfig, MiningConfig, ModelConfig
from embedtune.data.collection import Collection
from embedtune.data.prepare import prepare
from embedtune.data.split import write_pairs
from embedtune.errors import OutputError
from embedtune.loading import load, tokenize
from embedtune.mining.mine import Mined
from embedtune.mining.with_encoder import mine_negatives
from embedtune.paths import expanded
from embedtune.progress import Reporter, SilentReporter

ENDINGS = (".jsonl", ".jsonl.gz")


@dataclass(frozen=True)
class Example:
    """A negative that was mined, as a person reads it."""

    question: str
    positive: str
    negative: str
    positive_score: float
    negative_score: float


def mine_file(
    model: ModelConfig,
    data: DataConfig,
    mining: MiningConfig,
    out: Path,
    *,
    seed: int = 0,
    reporter: Reporter | None = None,
) -> tuple[Mined, list[Example]]:
    """Add hard negatives to every pair of `data.train`.

    No split is cut off. Pairs that share a question or a passage with those of `data.test` and `data.dev`, or nearly,
    are left out, and so are passages of these.

    Args:
        model: `base` is the model to mine with.
        data: the pairs; of its fields those about cutting splits have no part in it.
        mining: what to mine.
        out: `.jsonl` or `.jsonl.gz`, with the columns id, anchor, positive, negative_1 ... and, of a judge, scores: its
            logits of the positive and of each negative in order, which `train` takes for a teacher's.
        seed: of what is drawn.
        reporter: is told how it goes.

    Returns:
        What was written, and the hardest of the mined negatives.

    Raises:
        UserError: the data, a model or the output can't be used.
    """
    reporter = reporter or SilentReporter()
    check_place(out, data)
    splits = prepare(data, seed=seed, cut=False)
    for note in splits.notes:
        reporter.note(note)
    for warning in splits.warnings:
        reporter.warn(warning)
    encoder = load(model, reporter)
    texts = tokenize(encoder, splits.collection, reporter)
    mined = mine_negatives(encoder, splits, texts, mining, seed=seed, reporter=reporter)
    write_pairs(out, mined.pairs, splits.collection)
    return mined, hardest(mined, splits.collection)


def check_place(out: Path, data: DataConfig) -> None:
    """Whether such a file can be written there, as far as its name tells.

    Raises:
        OutputError: its ending isn't known, its folder does not exist, or it is one of the files to read.
    """
    if not out.name.endswith(ENDINGS):
        raise OutputError(f"--out {out}: got '{out.suffix}', expected a name that ends in {' or '.join(ENDINGS)}.")
    if not out.absolute().parent.is_dir():
        raise OutputError(f"--out {out}: its folder {out.absolute().parent} does not exist.")
    if out.is_dir():
        raise OutputError(f"--out {out} is a folder, expected a file.\nType:  --out {out / 'mined.jsonl'}")
    for given in (data.train, data.test, data.dev):
        if given and out.exists() and os.path.exists(expanded(given)) and out.samefile(expanded(given)):
            raise OutputError(f"--out {out} is a file to read from; expected another one, as it would be replaced.")


def hardest(mined: Mined, collection: Collection, most: int = 3) -> list[Example]:
    """The mined negatives with the highest scores, each of another question: if any are answers, these are."""
    pairs, scores = mined.pairs, mined.scores
    places = [(row, -place) for row, added in enumerate(mined.added) for place in range(1, added + 1)]
    examples: dict[int, Example] = {}
    for row, place in sorted(places, key=lambda found: -scores[found[0]][found[1]]):
        if len(examples) == most:
            break
        example = Example(
            question=collection.queries[pairs.query_ids[row]],
            positive=collection.passages[pairs.passage_ids[row]],
            negative=collection.passages[pairs.negative_ids[row][place]],
            positive_score=scores[row][0],
            negative_score=scores[row][place],
        )
        examples.setdefault(int(pairs.query_ids[row]), example)
    return list(examples.values())
