"""torch's random state, taken and put back."""

from __future__ import annotations

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
