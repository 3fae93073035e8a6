"""Data sets of the Hugging Face hub."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import Any

from embedtune.data.records import Record
from embedtune.data.table import Split, pick_split
from embedtune.errors import DataError

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.\-]*(/[A-Za-z0-9][\w.\-]*)?(:[\w.\-]+)?(@[\w.\-/]+)?")
_COMMIT = re.compile(r"(?:^|[@/\\])([0-9a-f]{40})(?=[/\\]|$)")


def is_hub_id(source: str) -> bool:
    """Whether the source reads like `name` or `owner/name`, optionally with `:config` and `@revision`."""
    return _HUB_ID.fullmatch(source) is not None


def load_splits(source: str) -> Any:
    """The `datasets.DatasetDict` of a hub id, from the local cache if it is there.

    Raises:
        DataError: it can't be had, with the reason that `datasets` gives.
    """
    import datasets

    id_, _, revision = source.partition("@")
    name, _, config = id_.partition(":")
    pinned = {"revision": revision} if revision else {}
    try:
        # All splits at once: `datasets` downloads them all in any case, and their names come from the same
        # local cache, so that a second run needs no network.
        splits = datasets.load_dataset(name, config or None, **pinned)
    except Exception as error:  # what the hub, the network and the file builders raise is an open set
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise DataError(
            f"'{source}' is no file or folder here, and loading it as a data set of the Hugging Face hub "
            f"failed: {reason}. Check the spelling and the network (OWNER/NAME[:CONFIG][@REVISION]), "
            f"or type the path of a file instead."
        ) from error
    # Without a network `datasets` takes what its cache holds, whichever revision that is.
    if _COMMIT.fullmatch(revision) and (_commit(splits) or revision) != revision:
        raise DataError(
            f"'{source}': the local cache holds commit {_commit(splits)}, and the hub can't be reached. "
            f"Type the same command again with a network, or type the path of a file instead."
        )
    return splits


def pin(source: str) -> tuple[str, str | None]:
    """A hub id with the commit that was loaded as its revision, and that commit, as far as `datasets` tells.

    Raises:
        DataError: as `load_splits`.
    """
    commit = _commit(load_splits(source))
    return (source if commit is None else f"{source.partition('@')[0]}@{commit}"), commit


def _commit(splits: Any) -> str | None:
    """From the addresses of the files that were downloaded, or the folder in `datasets`' cache."""
    for dataset in splits.values():
        addresses = [*(dataset.info.download_checksums or {}), *(file["filename"] for file in dataset.cache_files)]
        for address in addresses:
            if found := _COMMIT.search(address):
                return found[1]
    return None


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
