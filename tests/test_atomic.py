"""Writing beside and renaming: whole or as it was, and nothing left beside."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from embedtune.atomic import remove_folder, replacing, tidy, why_not_written


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


def test_everything_is_on_the_disk_before_it_takes_its_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each file, each folder's list, then the rename, then the list that the new name is in."""
    happened = list[str]()
    real: dict[str, Callable[..., Any]] = {"fsync": os.fsync, "replace": os.replace}

    def fsync(descriptor: int) -> None:
        happened.append(Path(f"/proc/self/fd/{descriptor}").resolve().name)
        real["fsync"](descriptor)

    def rename(source: Path, target: Path) -> None:
        happened.append(f"-> {Path(target).name}")
        real["replace"](source, target)

    if not Path("/proc/self/fd").exists():
        pytest.skip("nothing tells which file is flushed")
    monkeypatch.setattr(os, "fsync", fsync)
    monkeypatch.setattr(os, "replace", rename)
    with replacing(tmp_path / "model") as unfinished:
        (unfinished / "1_Pooling").mkdir(parents=True)
        (unfinished / "weights").write_text("weights")
        (unfinished / "1_Pooling" / "config").write_text("config")
    assert set(happened[:4]) == {"weights", "config", "1_Pooling", ".model.tmp"}
    assert happened[4:] == ["-> model", tmp_path.name]


@pytest.mark.parametrize("killed", ["before the new one is there", "before the old one is gone"])
def test_killed_while_a_folder_is_replaced_one_of_the_two_is_whole(killed: str, tmp_path: Path) -> None:
    old, new = tmp_path / ".model.old", tmp_path / "model"
    old.mkdir()
    (old / "weights").write_text("old")
    if killed == "before the old one is gone":
        new.mkdir()
        (new / "weights").write_text("new")
    (tmp_path / ".results.json.tmp").write_text("half")
    tidy(tmp_path)
    assert (new / "weights").read_text() == ("old" if killed == "before the new one is there" else "new")
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_a_failed_exchange_of_folders_is_undone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, real = tmp_path / "model", os.rename
    path.mkdir()
    (path / "weights").write_text("old")

    def rename(source: Path, target: Path) -> None:
        if Path(source).name == ".model.tmp":
            raise OSError(errno.EIO, "Input/output error")
        real(source, target)

    def replace() -> None:
        with replacing(path) as unfinished:
            unfinished.mkdir()

    monkeypatch.setattr(os, "rename", rename)
    with pytest.raises(OSError, match="Input/output"):
        replace()
    assert (path / "weights").read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_folder_that_is_removed_is_never_half_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "step-00000001"
    path.mkdir()
    (path / "weights").write_text("")
    monkeypatch.setattr("shutil.rmtree", lambda folder, **_: pytest.fail("half") if Path(folder) == path else None)
    remove_folder(path)
    assert not path.exists()


def test_what_is_in_the_way_is_said(tmp_path: Path) -> None:
    path = tmp_path / "model"
    assert "No space left on device" in why_not_written(OSError(errno.ENOSPC, "No space left on device"), path)
    assert "make room" in why_not_written(RuntimeError("I/O error: No space left on device (os error 28)"), path)
    assert "no permission to write in" in why_not_written(OSError(errno.EROFS, "Read-only file system"), path)
    assert "gone" in why_not_written(OSError(errno.ENOENT, "No such file"), tmp_path / "gone" / "model")
