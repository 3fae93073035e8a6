"""Memory: how much is free, how much a computation takes, and whether it ran out."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import psutil
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from embedtune.errors import RunError

_NO_MEMORY = ("out of memory", "can't allocate memory", "not enough memory", "cublas_status_alloc_failed")
"""What is said where there is no class of exception for it: by torch on a CPU, on Linux and on Windows, and by CUDA."""
_CGROUP_FILES = {
    "": ("/sys/fs/cgroup", "memory.max", "memory.current", "inactive_file"),
    "memory": (
        "/sys/fs/cgroup/memory",
        "memory.limit_in_bytes",
        "memory.usage_in_bytes",
        "total_inactive_file",
    ),
}
"""Of control groups of version 2 and 1: where they lie, and which files say what is the limit, used, and idle."""


def out_of_memory(error: BaseException | None) -> bool:
    """Whether memory ran out, or that is why another error was raised."""
    while error is not None:
        said = str(error).lower()
        if isinstance(error, (MemoryError, torch.OutOfMemoryError)) or any(sign in said for sign in _NO_MEMORY):
            return True
        error = error.__cause__ or error.__context__
    return False


class Spare(Protocol):
    """Holds memory that makes things faster and is not needed."""

    def release(self) -> bool:
        """Give it up; returns whether there was any."""
        ...


_SPARES: weakref.WeakSet[Spare] = weakref.WeakSet()


def offer(spare: Spare) -> None:
    """Let `release_spares` take back what this one holds, for as long as it lives."""
    _SPARES.add(spare)


def release_spares() -> bool:
    """Give up memory that is held for speed alone; returns whether there was any."""
    released = [spare.release() for spare in _SPARES]
    return any(released)


@contextmanager
def told_if_memory_runs_out(where: Callable[[], str]) -> Iterator[None]:
    """While open, memory that runs out is an error which says where, and what to type.

    Raises:
        RunError: it ran out.
    """
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if not out_of_memory(error):
            raise
        raise RunError(f"memory ran out {where()}") from error


def free_bytes(device: torch.device) -> int:
    """Memory that this process may still take: of the device, or of the machine and of the control group it is in."""
    if device.type == "cuda":
        kept = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return int(torch.cuda.mem_get_info(device)[0]) + kept
    available = int(psutil.virtual_memory().available)
    return max(0, min([available, *_left_in_control_groups()]))


def peak_bytes(compute: Callable[[], object], device: torch.device | None = None) -> int:
    """Most memory that tensors which come up in a computation hold at once; its backward pass is seen too.

    On CUDA the allocator tells. On a CPU tensors that were there before count as well, once they are used, so it is the
    difference between two such numbers that says something; what an operation takes for itself and gives back is not
    seen.
    """
    if device is not None and device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        compute()
        return torch.cuda.max_memory_allocated(device) - before
    with _Storages() as storages:
        compute()
    peak: int = storages.peak
    return peak


class _Storages(TorchDispatchMode):
    """Adds up the storages of all tensors that operations return, for as long as they live."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.peak = self._held = 0
        self._alive: dict[int, weakref.ref[Any]] = {}

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = function(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            if isinstance(tensor, Tensor):
                self._count(tensor.untyped_storage())
        return result

    def _count(self, storage: Any) -> None:
        if id(storage) not in self._alive:
            gone = partial(self._forget, id(storage), storage.nbytes())
            self._alive[id(storage)] = weakref.ref(storage, gone)
            self._held += storage.nbytes()
            self.peak = max(self.peak, self._held)

    def _forget(self, key: int, size: int, _: Any) -> None:
        del self._alive[key]
        self._held -= size


def _left_in_control_groups() -> Iterator[int]:
    """What each control group of this process, such as a container's, leaves of its limit (Linux only)."""
    try:
        memberships = Path("/proc/self/cgroup").read_text(encoding="utf-8").splitlines()
    except OSError:
        return
    for membership in memberships:
        _, controller, group = membership.split(":", 2)
        if controller not in _CGROUP_FILES:
            continue
        root, limit, used, reclaimable = _CGROUP_FILES[controller]
        for path in (Path(group), *Path(group).parents):
            folder = Path(root) / path.relative_to("/")
            try:
                statistics = dict(line.split() for line in (folder / "memory.stat").read_text().splitlines())
                # Files that were read count as used until somebody needs the room.
                taken = int((folder / used).read_text()) - int(statistics[reclaimable])
                yield int((folder / limit).read_text()) - taken
            except (OSError, ValueError, KeyError):  # no such file, or no limit: "max"
                continue
