"""torch's random state, taken and put back, and arithmetic that gives the same bits every time."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor


def random_state() -> dict[str, Tensor]:
    """The state of the CPU's generator, and of the GPU's if there is one."""
    state = {"random.cpu": torch.get_rng_state()}
    if torch.cuda.is_available():
        state["random.cuda"] = torch.cuda.get_rng_state()
    return state


def restore_random_state(state: Mapping[str, Tensor]) -> None:
    """Put back what `random_state` returned; other entries are ignored."""
    torch.set_rng_state(state["random.cpu"])
    if "random.cuda" in state and torch.cuda.is_available():
        torch.cuda.set_rng_state(state["random.cuda"])


@contextmanager
def random_state_kept(start: Mapping[str, Tensor] | None = None) -> Iterator[None]:
    """While open, random numbers follow from `start`, if it is given; afterwards, from where they were before."""
    before = random_state()
    if start is not None:
        restore_random_state(start)
    try:
        yield
    finally:
        restore_random_state(before)


@contextmanager
def same_bits(wanted: bool) -> Iterator[None]:
    """While open, if wanted, torch takes no algorithm whose result depends on the order in which a GPU's threads end.

    cuBLAS is told by the environment, and asks when a process first uses it.
    """
    if not wanted:
        yield
        return
    before, memory = torch.are_deterministic_algorithms_enabled(), torch.utils.deterministic
    fill = memory.fill_uninitialized_memory  # type: ignore[attr-defined]
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(True)
    memory.fill_uninitialized_memory = False  # type: ignore[attr-defined]  # it finds bugs, and costs a pass
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before)
        memory.fill_uninitialized_memory = fill  # type: ignore[attr-defined]
