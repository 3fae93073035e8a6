"""What an attacker would give: pickles and Python code that leave a mark when they run."""

from __future__ import annotations

import os
import pickle
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest


class _Bomb:
    def __init__(self, mark: Path) -> None:
        self._mark = mark

    def __reduce__(self) -> tuple[Callable[[str], None], tuple[str]]:
        return os.mkdir, (str(self._mark),)


@pytest.fixture
def mark(tmp_path: Path) -> Path:
    """What appears when code of a model or of a data file runs."""
    return tmp_path / "code was run"


@pytest.fixture
def bomb(mark: Path) -> Iterator[Callable[[Path], Path]]:
    """Writes a pickle that makes `mark` when it is read; at the end there must be none."""

    def write(path: Path) -> Path:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(pickle.dumps(_Bomb(mark)))
        return path

    yield write
    assert not mark.exists()


@pytest.fixture
def code(mark: Path) -> str:
    """The first line of a Python file that makes `mark` when it is imported."""
    return f"import os; os.makedirs({str(mark)!r}, exist_ok=True)\n"
