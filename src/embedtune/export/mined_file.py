"""What was mined for a phase of a training, kept for a resumed run, which has to train with the same."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from embedtune.atomic import why_not_written
from embedtune.errors import StorageError
from embedtune.export.run_folder import write_json


class MinedFile:
    """The negatives of every row, and what is told of them."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def write(self, negative_ids: Sequence[Sequence[int]], facts: dict[str, Any]) -> None:
        """Keep them.

        Raises:
            StorageError: the file can't be written.
        """
        negatives = [list(ids) for ids in negative_ids]
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            write_json(self.path, {"facts": facts, "negatives": negatives, "sha256": _checksum(negatives)})
        except OSError as error:
            raise StorageError(f"{self.path} can't be written: {why_not_written(error, self.path)}") from error

    def read(self, *, rows: int) -> tuple[tuple[tuple[int, ...], ...], dict[str, Any]]:
        """The negatives and the facts.

        Args:
            rows: that there have to be.

        Raises:
            StorageError: they can't be read, or are not what was written.
        """
        try:
            content = json.loads(self.path.read_text(encoding="utf-8"))
            negatives, facts = content["negatives"], content["facts"]
            if not isinstance(facts, dict) or content["sha256"] != _checksum(negatives):
                raise ValueError("it is not what was written")
            if len(negatives) != rows:
                raise ValueError(f"it has {len(negatives):,} rows")
            return tuple(tuple(map(int, ids)) for ids in negatives), facts
        except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
            raise StorageError(
                f"{self.path}: the negatives that this run was trained with can't be read: {error}\n"
                "It can't go on to the same weights without them. Leave --resume out and give another --out."
            ) from error


def _checksum(negatives: list[list[int]]) -> str:
    return hashlib.sha256(json.dumps(negatives).encode()).hexdigest()
