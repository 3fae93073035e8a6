"""Writing beside and renaming: whole or as it was, and nothing left beside."""

from __future__ import annotations

from pathlib import Path

import pytest

from embedtune.atomic import replacing


def test_a_file_is_replaced_when_the_block_ends(tmp_path: Path) -> None:
    path = tmp_path / "results.json"
    path.write_text("old")
    with replacing(path) as unfinished:
        unfinished.write_text("new")
        assert path.read_text() == "old"
    assert path.read_text() == "new"
    assert list(tmp_path.iterdir()) == [path]


def test_a_folder_is_replaced_whole(tmp_path: Path) -> None:
    path = tmp_path / "model"
    path.mkdir()
    (path / "old").write_text("old")
    with replacing(path) as unfinished:
        unfinished.mkdir()
        (unfinished / "new").write_text("new")
    assert [file.name for file in path.iterdir()] == ["new"]
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), KeyboardInterrupt()])
def test_a_failure_leaves_everything_as_it_was(error: BaseException, tmp_path: Path) -> None:
    path = tmp_path / "results.json"
    path.write_text("old")

    def fail_half_way() -> None:
        with replacing(path) as unfinished:
            unfinished.write_text("half")
            raise error

    with pytest.raises(type(error)):
        fail_half_way()
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_what_a_killed_process_left_is_removed(tmp_path: Path) -> None:
    path = tmp_path / "model"
    with pytest.raises(RuntimeError), replacing(path) as left:
        raise RuntimeError
    left.mkdir()
    (left / "stale").write_text("stale")
    with replacing(path) as unfinished:
        unfinished.mkdir()
    assert list(path.iterdir()) == []
