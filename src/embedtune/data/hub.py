"""Data sets of the Hugging Face hub."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import Any

from embedtune.data.files import Record
from embedtune.data.table import Split, pick_split
from embedtune.errors import DataError

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.\-]*(/[A-Za-z0-9][\w.\-]*)?(:[\w.\-]+)?")


def is_hub_id(source: str) -> bool:
    """Whether the source reads like `name` or `owner/name`, optionally with `:config`."""
    return _HUB_ID.fullmatch(source) is not None


def load_splits(source: str) -> Any:
    """The `datasets.DatasetDict` of a hub id, from the local cache if it is there.

    Raises:
        DataError: it can't be had, with the reason that `datasets` gives.
    """
    import datasets

    name, _, config = source.partition(":")
    try:
        # All splits at once: `datasets` downloads them all in any case, and their names come from the same
        # local cache, so that a second run needs no network.
        return datasets.load_dataset(name, config or None)
    except Exception as error:  # what the hub, the network and the file builders raise is an open set
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise DataError(
            f"'{source}' is no file or folder here, and loading it as a data set of the Hugging Face hub "
            f"failed: {reason}. Check the spelling and the network (OWNER/NAME or OWNER/NAME:CONFIG), "
            f"or type the path of a file instead."
        ) from error


def load_split(source: str, split: Split) -> Any:
    """The `datasets.Dataset` of one split of a hub id; if there is only one split, that one is taken.

    Raises:
        DataError: the data set can't be had, has no such split, or no rows.
    """
    splits = load_splits(source)
    name = pick_split(splits, split)
    if name is None:
        raise DataError(
            f"'{source}' has no split '{split}'; it has: {', '.join(splits)}. "
            f"Type the path of a file instead, or another data set."
        )
    if len(splits[name]) == 0:
        raise DataError(f"The split '{name}' of '{source}' has no rows.")
    return splits[name]


def dataset_records(dataset: Any, names: Sequence[str], source: str) -> Iterator[Record]:
    """The rows of a `datasets.Dataset`, numbered from 1, with the named columns only."""
    for number, fields in enumerate(dataset.select_columns(list(names)), 1):
        yield Record(f"{source}:{number}", fields)
