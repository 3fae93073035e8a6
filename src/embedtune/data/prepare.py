"""All files of a job to one collection and its train, dev and test pairs."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

from embedtune.config import DataConfig
from embedtune.data.clean import CleanRows, CollectionBuilder, check_trainable
from embedtune.data.collection import Collection, Pairs
from embedtune.data.read import Columns, Split, available_splits, read, read_passages
from embedtune.data.split import drop_leaks, split_by_passage, write_pairs
from embedtune.errors import ConfigError, DataError


@dataclass(frozen=True, kw_only=True)
class Splits:
    """What to train on, what to choose the checkpoint on, what to report on."""

    collection: Collection
    train: Pairs
    dev: Pairs
    test: Pairs
    dropped: dict[str, int]
    """Reason to number of rows, negatives or passages that were not used, over all files."""
    notes: tuple[str, ...] = field(default=())
    """What was recognised and derived, a sentence each, to print."""


def prepare(config: DataConfig, *, seed: int) -> Splits:
    """Read, clean, split, and take out of training what would leak into the dev or test set.

    A file given for dev or test is used as it is; else the data set's own split, if it has one; else pairs are cut
    off the training file by passage.

    Raises:
        DataError: a source can't be read, or there is nothing to train or test on.
    """
    if not config.train:
        raise ConfigError("no training data was given.\nType:  embedtune train PAIRS.jsonl")
    builder, notes = CollectionBuilder(), list[str]()
    sources = _sources(config)
    tables = {split: _add(builder, source, split, config, notes) for split, source in sources.items()}
    dropped = Counter({"duplicate_pairs": 0, "leaked_pairs": 0})
    if config.corpus is not None:
        dropped.update(builder.add_passages(read_passages(config.corpus)))
    collection = builder.finish()
    for table in tables.values():
        dropped.update(table.dropped)

    train = tables["train"].pairs
    check_trainable(train, collection, config.train)
    test, dev = (tables[split].pairs if split in tables else None for split in ("test", "dev"))
    if test is not None and dev is not None:
        dev, leaked = drop_leaks(dev, test)
        dropped["leaked_pairs"] += leaked
        _require_dev(dev, sources["dev"])
    train, leaked = drop_leaks(train, *(pairs for pairs in (test, dev) if pairs is not None))
    dropped["leaked_pairs"] += leaked
    if test is None:
        check_trainable(train, collection, config.train)
        train, test = split_by_passage(train, fraction=config.test_fraction, seed=seed)
        notes.append(f"test: {len(test):,} pairs cut off by passage (seed {seed})")
    if dev is None:
        check_trainable(train, collection, config.train)
        fraction = min(config.dev_fraction, config.max_dev_pairs / len(train))
        train, dev = split_by_passage(train, fraction=fraction, seed=seed)
        notes.append(f"dev: {len(dev):,} pairs cut off by passage (seed {seed})")
    check_trainable(train, collection, config.train)
    return Splits(collection=collection, train=train, dev=dev, test=test, dropped=dict(dropped), notes=tuple(notes))


def write_splits(splits: Splits, folder: Path) -> None:
    """Save the three splits as `train.jsonl`, `dev.jsonl` and `test.jsonl`, with ids."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, pairs in (("train", splits.train), ("dev", splits.dev), ("test", splits.test)):
        write_pairs(folder / f"{name}.jsonl", pairs, splits.collection)


def _require_dev(dev: Pairs, source: str) -> None:
    if len(dev) == 0:
        raise DataError(
            f"'{source}': every dev question or passage is also in the test set, so none is left to choose the "
            "checkpoint on. Give other rows, or leave out --dev to have a dev split cut."
        )


def _sources(config: DataConfig) -> dict[Split, str]:
    """Where the pairs of each split come from; a split that is to be cut off is missing."""
    own = available_splits(config.train)
    sources: dict[Split, str] = {"train": config.train}
    held_out: dict[Split, str | None] = {"test": config.test, "dev": config.dev}
    for split, given in held_out.items():
        if given is not None:
            sources[split] = given
        elif split in own:
            sources[split] = config.train
    return sources


def _add(builder: CollectionBuilder, source: str, split: Split, config: DataConfig, notes: list[str]) -> CleanRows:
    columns = Columns(config.anchor_column, config.positive_column, config.negative_columns)
    table = read(source, columns=columns, split=split)
    rows = builder.add(table)
    found = table.columns
    named = f" (questions: '{found.anchor}', passages: '{found.positive}')" if found.anchor else ""
    notes.append(f"{split}: {len(rows.pairs):,} pairs from {source}{named}")
    return rows
