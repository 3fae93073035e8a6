"""All files of a job to one collection and its train, dev and test pairs."""

from __future__ import annotations

from collections import Counter
from dataclasses import asdict, dataclass, field
from functools import partial
from itertools import takewhile
from pathlib import Path
from typing import NamedTuple

import numpy as np

from embedtune.config import DataConfig
from embedtune.data.clean import CleanRows, CollectionBuilder
from embedtune.data.collection import Collection, Pairs
from embedtune.data.labels import Replaced, apply_labels, read_labels, relabelled
from embedtune.data.near import NearDuplicates, find_near_duplicates
from embedtune.data.read import Columns, Split, Table, available_splits, read, read_passages
from embedtune.data.split import Leaks, drop_leaks, split_by_passage, write_pairs
from embedtune.data.trainable import check_graded, check_trainable
from embedtune.errors import ConfigError, DataError, brief


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
    warnings: tuple[str, ...] = field(default=())
    """What the user should look at, likewise."""
    leaks: Leaks = field(default=Leaks())
    """What the training rows had in common with the test and dev rows."""
    near_duplicates: NearDuplicates | None = None
    """Which passages counted as one; `None` if they were not looked for."""

    @property
    def pairs(self) -> dict[str, Pairs]:
        """The three by name."""
        return {"train": self.train, "dev": self.dev, "test": self.test}


def prepare(config: DataConfig, *, seed: int, cut: bool = True) -> Splits:
    """Read, clean, split, and take out of training what would leak into the dev or test set.

    A file given for dev or test is used as it is; else the data set's own split, if it has one; else pairs are cut
    off the training file by passage. Labels change what answers a question, and not where its rows are.

    Args:
        config: the files.
        seed: of the splits that are cut off.
        cut: without it none is: a split that nothing was given for stays empty.

    Raises:
        DataError: a source can't be read, or there is nothing to train or test on.
    """
    if not config.train:
        raise ConfigError("no training data was given.\nType:  embedtune train PAIRS.jsonl")
    notes, warnings, sources = list[str](), list[str](), _sources(config)
    tables, collection, replaced, dropped = _read_all(config, sources, notes, warnings)
    near = _near_duplicates(config, [table.pairs for table in tables.values()], collection, notes)
    check_trainable(tables["train"].pairs, collection, config.train)
    train = tables["train"].pairs
    test, dev = (tables[split].pairs if split in tables else train.select([]) for split in ("test", "dev"))
    train, dev, leaks = _without_leaks(train, dev, test, collection, near, dropped)
    if "dev" in sources:
        _require_dev(dev, sources["dev"])
    if cut:
        held_out = partial(_cut, near=near, seed=seed, sentences=collection.sentences, warnings=warnings)
        by = f"by {'sentence' if collection.sentences else 'passage'} (seed {seed})"
        if "test" not in sources:
            check_trainable(train, collection, config.train)
            train, test = held_out(train, fraction=config.test_fraction)
            notes.append(f"test: {len(test):,} pairs cut off {by}")
        if "dev" not in sources:
            check_trainable(train, collection, config.train)
            train, dev = held_out(train, fraction=min(config.dev_fraction, config.max_dev_pairs / len(train)))
            notes.append(f"dev: {len(dev):,} pairs cut off {by}")
    if config.labels is not None:
        train, dev, test = (relabelled(pairs, replaced) for pairs in (train, dev, test))
        train, dev, further = _without_leaks(train, dev, test, collection, near, dropped)
        leaks = Leaks(**{name: getattr(leaks, name) + getattr(further, name) for name in asdict(leaks)})
        if cut or "dev" in sources:
            _require_dev(dev, sources.get("dev", config.train))
    check_trainable(train, collection, config.train)
    if collection.graded:
        check_graded(dev, "to choose the checkpoint on", sources.get("dev", config.train))
        check_graded(test, "to test on", sources.get("test", config.train))
    warnings += _leaks_found(leaks, test, sentences=collection.sentences)
    return Splits(
        collection=collection,
        train=train,
        dev=dev,
        test=test,
        dropped=dict(dropped),
        notes=tuple(notes),
        warnings=tuple(warnings),
        leaks=leaks,
        near_duplicates=near,
    )


class _Read(NamedTuple):
    """What all files of a job have."""

    tables: dict[Split, CleanRows]
    collection: Collection
    replaced: Replaced
    """What the labels put in place of what."""
    dropped: Counter[str]


def _read_all(config: DataConfig, sources: dict[Split, str], notes: list[str], warnings: list[str]) -> _Read:
    """The rows of each split that something was given for, and one collection of their texts and the corpus."""
    builder = CollectionBuilder()
    tables = {split: _add(builder, source, split, config, notes, warnings) for split, source in sources.items()}
    if builder.collection.graded:
        refuse_for_graded(config)
    dropped = Counter({"duplicate_pairs": 0, "leaked_pairs": 0, "near_duplicate_pairs": 0})
    if config.corpus is not None:
        dropped.update(builder.add_passages(read_passages(config.corpus)))
    notes += respelled(builder)
    replaced = {} if config.labels is None else apply_labels(read_labels(config.labels), builder.collection)
    collection = builder.finish()
    for table in tables.values():
        dropped.update(table.dropped)
    return _Read(tables, collection, replaced, dropped)


def respelled(builder: CollectionBuilder) -> list[str]:
    """A sentence on the passages that came in several punctuations, if there are any, with the first of them."""
    if not builder.respelled:
        return []
    number, other = next(iter(builder.respelled.items()))
    kept = builder.collection.passages[number]
    alike = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(kept, other, strict=False)))
    one, two = (brief(text[max(0, alike - 30) :], 60) for text in (kept, other))
    return [
        f"passages: {len(builder.respelled):,} came in several punctuations, each of which counts as one passage; the "
        f"first: '{one}' and '{two}'"
    ]


def refuse_for_graded(config: DataConfig) -> None:
    """Refuses settings that graded pairs have no use for.

    Raises:
        ConfigError: there is one.
    """
    for option, given in (("corpus", config.corpus), ("labels", config.labels)):
        if given is not None:
            raise ConfigError(
                f"--{option} {given}: the pairs are graded, so nothing is searched and nothing is right or wrong. "
                "Leave it out, or to take every row's passage as right, type:  --score-column none"
            )


def write_splits(splits: Splits, folder: Path) -> None:
    """Save the three splits as `train.jsonl`, `dev.jsonl` and `test.jsonl`, with ids."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, pairs in splits.pairs.items():
        write_pairs(folder / f"{name}.jsonl", pairs, splits.collection)


def _near_duplicates(
    config: DataConfig, rows: list[Pairs], collection: Collection, notes: list[str]
) -> NearDuplicates | None:
    """The near-duplicates among the passages that answer a question, unless they are not looked for."""
    if config.near_duplicates == 0:
        return None
    ids = np.concatenate([pairs.passage_ids for pairs in rows])
    if collection.sentences:
        ids = np.concatenate([ids, *(pairs.query_ids for pairs in rows)])
    near = find_near_duplicates(collection.passages, ids, threshold=config.near_duplicates)
    found = f"{near.passages:,} of {len(np.unique(ids)):,} {'sentences' if collection.sentences else 'passages'}"
    kept_together = f", in {near.groups:,} groups that stay on one side of a split" if near.groups else ""
    notes.append(f"near-duplicates: {found}{kept_together} (--near-duplicates {near.threshold:g})")
    return near


def _without_leaks(
    train: Pairs,
    dev: Pairs,
    test: Pairs,
    collection: Collection,
    near: NearDuplicates | None,
    dropped: Counter[str],
) -> tuple[Pairs, Pairs, Leaks]:
    """Training rows that share nothing with the other two, dev rows that share nothing with the test rows, and what
    the training rows had shared."""
    leaders_D = None if near is None else near.leaders_D
    without = partial(drop_leaks, leaders_D=leaders_D, qrels=collection.qrels, sentences=collection.sentences)
    dev, leaks_of_dev = without(dev, test)
    train, leaks = without(train, test, dev)
    dropped["leaked_pairs"] += leaks.pairs + leaks_of_dev.pairs
    dropped["near_duplicate_pairs"] += leaks.near_duplicates + leaks_of_dev.near_duplicates
    return train, dev, leaks


def _cut(
    train: Pairs, *, near: NearDuplicates | None, fraction: float, seed: int, sentences: bool, warnings: list[str]
) -> tuple[Pairs, Pairs]:
    """The rest and the held-out rows; near-duplicates are on one side unless that leaves nothing to cut."""
    split = partial(split_by_passage, train, fraction=fraction, seed=seed, sentences=sentences)
    if near is not None and near.passages:
        try:
            return split(leaders_D=near.leaders_D)
        except DataError:
            warnings.append(
                f"most {'sentences' if sentences else 'passages'} hang together through near-duplicates, so a split "
                "was cut that goes through them: what it measures is too good. Give other rows with --test, or raise "
                f"--near-duplicates ({near.threshold:g})"
            )
    return split()


def _leaks_found(leaks: Leaks, test: Pairs, *, sentences: bool) -> list[str]:
    """A sentence on what the training rows shared with the held-out ones, if they did."""
    if not leaks.pairs + leaks.near_duplicates:
        return []
    passages, queries = (len(np.unique(ids)) for ids in (test.passage_ids, test.query_ids))
    if sentences:
        passages = len(np.union1d(test.passage_ids, test.query_ids))
    sharing = [
        f"{shared:,} of the {count:,} test {what}"
        for shared, count, what in (
            (leaks.test_passages, passages, "sentences" if sentences else "passages"),
            (leaks.test_queries, queries, "questions"),
        )
        if shared
    ]
    found = f"{' and '.join(sharing)} are also in the training data; " if sharing else ""
    what = "sentences" if sentences else "passages"
    texts = what if sentences else "questions or passages"
    near = f", {leaks.near_duplicates:,} with near-duplicates of held-out {what}" if leaks.near_duplicates else ""
    return [f"{found}left out of training: {leaks.pairs:,} pairs with held-out {texts}{near}"]


def _require_dev(dev: Pairs, source: str) -> None:
    if len(dev) == 0:
        raise DataError(
            f"'{source}': every dev question or passage is also in the test set, or nearly, so none is left to choose "
            "the checkpoint on. Give other rows, or leave out --dev to have a dev split cut."
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


def _add(
    builder: CollectionBuilder, source: str, split: Split, config: DataConfig, notes: list[str], warnings: list[str]
) -> CleanRows:
    table = read(source, columns=asked_columns(config), split=split)
    rows = builder.add(table)
    notes.append(f"{split}: {described(table, rows)}")
    if table.warning:
        warnings.append(table.warning)
    return rows


def asked_columns(config: DataConfig) -> Columns:
    """The columns that the user named."""
    return Columns(config.anchor_column, config.positive_column, config.negative_columns, config.score_column)


def described(table: Table, rows: CleanRows) -> str:
    """How many pairs of which columns, and what their scores were understood as."""
    found, pairs = table.columns, rows.pairs
    if table.graded and found.sentences:
        named = [f"sentences: '{found.anchor}' and '{found.positive}'"]
    else:
        named = [f"questions: '{found.anchor}', passages: '{found.positive}'"] if found.anchor else []
    named += [table.note] if table.note else []
    parts = [f"{len(pairs):,} {'graded ' if table.graded else ''}pairs from {table.source}"]
    parts[0] += f" ({'; '.join(named)})" if named else ""
    if rows.rejected:
        parts.append(f"the passages of {rows.rejected:,} rows labelled 0 became negatives of their questions")
    if pairs.scores is not None:
        parts.append(f"a teacher's scores of {sum(map(bool, pairs.scores)):,} pairs")
    return "; ".join(parts)
