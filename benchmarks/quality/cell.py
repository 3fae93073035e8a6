"""A cell, which is one variant on one data set with one seed: what is run, where it lies, and whether it is done."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import embedtune
from benchmarks.quality.description import DataSet, Description
from embedtune.errors import OutputError
from embedtune.export.run_folder import RunFolder, write_json

KEPT = ("results.json", "config.toml")
"""Of a finished cell."""


@dataclass(frozen=True, kw_only=True)
class Cell:
    """One run."""

    variant: str
    data: str
    seed: int
    arguments: tuple[str, ...]
    """Of `embedtune train`, but for the seed and the folder; of a peer those of the cell that it is like."""
    peer: str | None = None
    like: Cell | None = None
    """The cell whose settings and training rows a peer takes."""

    @property
    def name(self) -> str:
        return f"{self.variant}, {self.data}, seed {self.seed}"


def cells_of(description: Description) -> list[Cell]:
    """All cells; one seed after the other, so that those of an interrupted run can be compared, and peers last."""
    cells: dict[tuple[str, str, int], Cell] = {}
    variants = sorted(description.variants.items(), key=lambda item: item[1].peer is not None)
    for seed in description.seeds:
        for name, data in description.data.items():
            for variant, told in variants:
                like = None if told.like is None else cells[told.like, name, seed]
                own = (*_of_data(data), "--base", description.base, *description.options, *data.options, *told.options)
                cells[variant, name, seed] = Cell(
                    variant=variant,
                    data=name,
                    seed=seed,
                    arguments=own if like is None else like.arguments,
                    peer=told.peer,
                    like=like,
                )
    return sorted(cells.values(), key=lambda cell: cell.peer is not None)


def _of_data(data: DataSet) -> tuple[str, ...]:
    given = (("--test", data.test), ("--dev", data.dev), ("--corpus", data.corpus))
    words = [word for option, source in given if source is not None for word in (option, source)]
    return (data.train, *words, *(("--forgetting", *data.forgetting) if data.forgetting else ()))


@dataclass
class Checksums:
    """SHA-256 of files and folders, each computed once."""

    _known: dict[Path, str] = field(default_factory=dict)

    def of_words(self, words: Sequence[str]) -> list[str]:
        """The words, with the checksum of what is in it for each that is a file or a folder."""
        return [self.of(Path(word)) if not word.startswith("-") and Path(word).exists() else word for word in words]

    def of(self, path: Path) -> str:
        """Of a file's content, or of that of all files in a folder and their names."""
        if path not in self._known:
            self._known[path] = f"sha256:{_checksum(path)}"
        return self._known[path]


def _checksum(path: Path) -> str:
    if path.is_file():
        with path.open("rb") as stream:
            digest = hashlib.sha256()
            while block := stream.read(2**20):
                digest.update(block)
        return digest.hexdigest()
    digest = hashlib.sha256()
    for file in sorted(path.rglob("*")):
        if file.is_file() and file.parent.name != "__pycache__":
            digest.update(f"{file.relative_to(path)} {_checksum(file)}\n".encode())
    return digest.hexdigest()


@dataclass(frozen=True)
class Store:
    """The folder with all cells: `VARIANT/DATA/SEED/`, and beside it `SEED.json`, by which a cell is known."""

    root: Path
    checksums: Checksums

    def folder(self, cell: Cell) -> RunFolder:
        return RunFolder(self.root / cell.variant / cell.data / str(cell.seed))

    def log(self, cell: Cell) -> Path:
        """What the command said; it is kept if the cell fails."""
        return self.folder(cell).root.with_suffix(".log")

    def is_done(self, cell: Cell, *, with_splits: bool) -> bool:
        """Whether the same cell has been finished, and left its splits if they are needed."""
        folder = self.folder(cell)
        record = self._record(cell)
        same = record.get("cell") == self._identity(cell) and record.get("done") is True
        return same and folder.results.is_file() and (not with_splits or folder.splits.is_dir())

    def start(self, cell: Cell) -> RunFolder:
        """Note what is about to be run, with nothing left of what was there before.

        Raises:
            OutputError: what is there was not written by this command.
        """
        folder, record = self.folder(cell), self._record_file(cell)
        if folder.root.exists() and not record.is_file():
            raise OutputError(
                f"{folder.root} holds something that this command did not write; nothing was changed.\n"
                "Type:  --out ANOTHER_FOLDER"
            )
        record.parent.mkdir(parents=True, exist_ok=True)
        self._write(cell, done=False)
        shutil.rmtree(folder.root, ignore_errors=True)
        return folder

    def finish(self, cell: Cell, *, keep_all: bool, with_splits: bool) -> None:
        """Keep what is worth it, and note that the cell is done."""
        folder = self.folder(cell)
        kept = {*KEPT, folder.splits.name} if with_splits else set(KEPT)
        for path in folder.root.iterdir() if not keep_all else ():
            if path.name not in kept:
                shutil.rmtree(path) if path.is_dir() else path.unlink()
        self.log(cell).unlink(missing_ok=True)
        self._write(cell, done=True)

    def abandon(self, cell: Cell) -> None:
        """Nothing is left of a cell that did not get to its end, but what it said."""
        shutil.rmtree(self.folder(cell).root, ignore_errors=True)

    def results(self, cell: Cell) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(self.folder(cell).results.read_text(encoding="utf-8"))
        return found

    def code(self, cell: Cell) -> str:
        """A checksum of embedtune's own code as it was when the cell was run."""
        return str(self._record(cell).get("code"))

    def _write(self, cell: Cell, *, done: bool) -> None:
        code = self.checksums.of(Path(embedtune.__file__).parent)
        write_json(self._record_file(cell), {"cell": self._identity(cell), "code": code, "done": done})

    def _record(self, cell: Cell) -> dict[str, Any]:
        try:
            found: dict[str, Any] = json.loads(self._record_file(cell).read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return {}
        return found

    def _record_file(self, cell: Cell) -> Path:
        return self.folder(cell).root.with_suffix(".json")

    def _identity(self, cell: Cell) -> dict[str, Any]:
        """What makes a cell the same as another one: what it is told, and what is in the files that it is told of."""
        identity: dict[str, Any] = {
            "arguments": self.checksums.of_words(cell.arguments),
            "seed": cell.seed,
        }
        return identity if cell.peer is None else {**identity, "peer": cell.peer}
