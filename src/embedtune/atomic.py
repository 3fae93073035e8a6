"""Files and folders that are there whole or not at all, also after a crash or a power cut.

Everything is written beside its place, flushed to the disk, and renamed. A folder can't be renamed onto another one, so
the old one steps aside first: `.name.old`, for the moment between two renames. Whoever is killed in that moment leaves
no `name`; `tidy` and the next `replacing` put the old one back.
"""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

_CANT_BE_FLUSHED = (errno.EINVAL, errno.ENOTSUP, errno.EACCES, errno.EPERM)
"""What some network and user-space file systems answer when they are asked to flush a folder."""


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A hidden path beside `path`, to write a file or make a folder at.

    When the block ends it takes the place of `path`, and is on the disk; when the block fails, `path` stays as it was
    and nothing is left beside it. What a killed process left there is removed first.
    """
    unfinished = _beside(path, "tmp")
    _put_back(path)
    _remove(unfinished)
    try:
        yield unfinished
        _flush(unfinished)
        _take_place(unfinished, path)
        _flush_folder(path.parent)
    except BaseException:
        with suppress(OSError):
            _put_back(path)
            _remove(unfinished)
        raise


def remove_folder(path: Path) -> None:
    """Remove a folder such that no part of it is ever found under its name."""
    going = _beside(path, "tmp")
    _remove(going)
    os.rename(path, going)
    _remove(going)


def tidy(folder: Path) -> None:
    """Finish what a killed process left undone in a folder: half-written things go, old ones that stepped aside return.

    Only for a folder in which nobody else writes.
    """
    if not folder.is_dir():
        return
    for left in folder.glob(".*.old"):
        _put_back(folder / left.name[1 : -len(".old")])
    for left in folder.glob(".*.tmp"):
        _remove(left)


def _beside(path: Path, suffix: str) -> Path:
    return path.with_name(f".{path.name}.{suffix}")


def _take_place(unfinished: Path, path: Path) -> None:
    if path.is_dir():
        aside = _beside(path, "old")
        os.rename(path, aside)
        os.rename(unfinished, path)
        _remove(aside)
    else:
        os.replace(unfinished, path)


def _put_back(path: Path) -> None:
    """What stepped aside for `path` returns if nothing has come in its place, and goes otherwise."""
    aside = _beside(path, "old")
    if path.exists():
        _remove(aside)
    elif aside.exists():
        os.rename(aside, path)


def _flush(path: Path) -> None:
    """What was written there is on the disk when this returns: the content of all files, and the folders' lists."""
    if not path.is_dir():
        _flush_file(path)
        return
    for folder, _, names in os.walk(path):
        for name in names:
            _flush_file(Path(folder, name))
        _flush_folder(Path(folder))


def _flush_file(path: Path) -> None:
    # Windows flushes no file that was opened to be read; elsewhere a file may be one that can only be read.
    descriptor = os.open(path, os.O_RDWR if os.name == "nt" else os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _flush_folder(path: Path) -> None:
    if os.name == "nt":  # which has no such thing
        return
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in _CANT_BE_FLUSHED:
            raise
    finally:
        os.close(descriptor)


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def why_not_written(error: Exception, path: Path) -> str:
    """What is in the way of writing at `path`, and what to do, from what the system or a library said."""
    number, said = getattr(error, "errno", None), getattr(error, "strerror", None) or str(error)
    if not path.absolute().parent.exists():
        return f"the folder {path.absolute().parent} is gone; it was removed or renamed while the run was writing there"
    if number in (errno.ENOSPC, errno.EDQUOT) or "No space left" in said:
        free = shutil.disk_usage(path.absolute().parent).free
        return f"No space left on device ({path.absolute().parent} has {free / 2**20:.0f} MiB free): make room"
    if number in (errno.EACCES, errno.EPERM, errno.EROFS):
        return f"no permission to write in {path.absolute().parent}: {said}"
    return said
