"""What runners must agree on before they are timed: a speed-up of something else is no speed-up.

Shapes: `B` texts, `E` embedding size.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from itertools import combinations

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from benchmarks.jobs import row_of
from benchmarks.records import Agreement
from embedtune.errors import RunError

MAX_LOSS_DIFFERENCE = {"fp32": 1e-3, "half": 2e-2}
"""Relative, between two runners; "half" if either computes in bf16 or fp16."""
MIN_COSINE = {"fp32": 0.9999, "half": 0.99}
"""Of every text's two embeddings."""

_ADAPTER_STD = 0.02


class DisagreementError(RunError):
    """Two runners don't compute the same; their speeds can't be compared."""


def fill_adapter(parameters: Iterable[tuple[str, nn.Parameter]], *, seed: int) -> None:
    """Give trainable parameters the same random values in every runner.

    PEFT starts adapters as doing nothing; with these values the comparison also covers where they sit and how they are
    scaled.

    Args:
        parameters: names and parameters; those that are trained are filled, in the order of their names.
        seed: of the values.
    """
    generator = torch.Generator().manual_seed(seed)
    for _, parameter in sorted(parameters, key=lambda named: named[0]):
        if parameter.requires_grad:
            values = torch.randn(parameter.shape, generator=generator) * _ADAPTER_STD
            parameter.data.copy_(values)


def check_agreement(found: Sequence[Agreement]) -> list[str]:
    """Compare every two runners; returns a line on each two.

    Raises:
        DisagreementError: two of them differ by more than rounding explains.
    """
    return [_compare(first, second) for first, second in combinations(found, 2)]


def check_losses(size: str, losses: Mapping[str, Sequence[float]], precision: str) -> list[str]:
    """Gradient checkpointing and --memory low save memory; neither may change what is computed.

    Args:
        size: of the encoder.
        losses: of every step, by cell.
        precision: of the encoder.

    Returns:
        A line on each cell whose first loss is right and whose later ones are not, as if its gradients were not.

    Raises:
        DisagreementError: the first losses of two cells of one method differ by more than rounding explains.
    """
    kind = "fp32" if precision == "fp32" else "half"
    firsts: dict[str, str] = {}
    lines = []
    for cell, found in losses.items():
        first = firsts.setdefault(row_of(cell).method, cell)
        both = f"{size}: {first} and {cell}"
        _compare_losses(both, losses[first][0], found[0], kind)
        worst = max(map(_relative_difference, losses[first], found))
        if not worst <= MAX_LOSS_DIFFERENCE[kind]:
            lines.append(f"{both}: the first losses agree, later ones differ by up to {worst:.2g}")
    return lines


def lowest_cosine(one_BE: npt.NDArray[np.float32], other_BE: npt.NDArray[np.float32]) -> float:
    """Smallest cosine similarity between the rows of two matrices; -1 if their shapes differ."""
    if one_BE.shape != other_BE.shape:
        return -1.0
    one, other = (x.astype(np.float64) / np.linalg.norm(x, axis=1, keepdims=True) for x in (one_BE, other_BE))
    return float((one * other).sum(axis=1).min())


def _compare(first: Agreement, second: Agreement) -> str:
    kind = "fp32" if first.precision == second.precision == "fp32" else "half"
    both = f"{first.runner} and {second.runner}"
    for name in ("tokens", "trainable_parameters"):
        one, other = getattr(first, name), getattr(second, name)
        if one != other:
            raise _disagreement(both, f"{name.replace('_', ' ')}: {one} and {other}")
    cosine = lowest_cosine(np.load(first.embeddings), np.load(second.embeddings))
    if not cosine >= MIN_COSINE[kind]:
        raise _disagreement(both, f"embeddings: cosine {cosine:.6f}, expected at least {MIN_COSINE[kind]}")
    line = f"{both}: cosine at least {cosine:.6f}"
    if first.loss is None or second.loss is None:
        return line
    _compare_losses(both, first.loss, second.loss, kind)
    return f"{line}, losses {first.loss:.5f} and {second.loss:.5f}"


def _compare_losses(both: str, one: float, other: float, kind: str) -> None:
    difference = _relative_difference(one, other)
    if not difference <= MAX_LOSS_DIFFERENCE[kind]:
        expected = f"expected a difference of at most {MAX_LOSS_DIFFERENCE[kind]:g}"
        raise _disagreement(both, f"loss: {one:.6f} and {other:.6f} ({difference:.2g}), {expected}")


def _relative_difference(one: float, other: float) -> float:
    return abs(one - other) / max(abs(one), abs(other), 1e-12)


def _disagreement(both: str, what: str) -> DisagreementError:
    return DisagreementError(f"{both} don't compute the same on the first batch, so no speeds are compared.\n{what}.")
