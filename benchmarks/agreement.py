"""What runners must agree on before they are timed: a speed-up of something else is no speed-up.

Shapes: `B` texts, `E` embedding size.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from benchmarks.jobs import OURS, row_of
from benchmarks.records import Agreement
from embedtune.errors import RunError

MAX_LOSS_DIFFERENCE = {"fp32": 1e-3, "half": 2e-2, "half on 4 bits": 5e-2}
"""Relative, between two runners; "half" if either computes in bf16 or fp16.

Some runners round the weights to bf16 before they go to 4 bits and some don't, which has come to 2 % of the loss of a
small batch and to a cosine of 0.9976. In fp32 bases in 4 bits are alike to the last digit.
"""
MIN_COSINE = {"fp32": 0.9999, "half": 0.99, "half on 4 bits": 0.99}
"""Of every text's two embeddings."""
SMALL_LOSS = 0.5
"""Differences are relative to that at least: rounding moves the logits by as much when the loss is small."""

_ADAPTER_STD = 0.02


class DisagreementError(RunError):
    """Two runners don't compute the same; their speeds can't be compared."""


@dataclass(frozen=True)
class Compared:
    """What came of comparing two runners."""

    one: str
    other: str
    agree: bool
    said: str
    """How close they are, or where they are too far apart."""


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


def compare(found: Sequence[Agreement]) -> list[Compared]:
    """Each runner of embedtune with every other runner."""
    return [
        _compare(first, second)
        for first, second in combinations(found, 2)
        if first.runner in OURS or second.runner in OURS
    ]


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
        if not _relative_difference(losses[first][0], found[0]) <= MAX_LOSS_DIFFERENCE[kind]:
            raise DisagreementError(
                f"{both} don't compute the same on the first batch, so no speeds are compared.\n"
                f"{_loss_difference(losses[first][0], found[0], kind)}."
            )
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


def _compare(first: Agreement, second: Agreement) -> Compared:
    kind = _kind(first, second)
    cosine = lowest_cosine(np.load(first.embeddings), np.load(second.embeddings))
    wrong = [
        f"{name.replace('_', ' ')}: {one} and {other}"
        for name in ("tokens", "trainable_parameters")
        if (one := getattr(first, name)) != (other := getattr(second, name))
    ]
    if not cosine >= MIN_COSINE[kind]:
        wrong.append(f"embeddings: cosine {cosine:.6f}, expected at least {MIN_COSINE[kind]}")
    close = f"cosine at least {cosine:.6f}"
    if first.loss is not None and second.loss is not None:
        if not _relative_difference(first.loss, second.loss) <= MAX_LOSS_DIFFERENCE[kind]:
            wrong.append(_loss_difference(first.loss, second.loss, kind))
        close += f", losses {first.loss:.5f} and {second.loss:.5f}"
    return Compared(first.runner, second.runner, agree=not wrong, said="; ".join(wrong) or close)


def _kind(first: Agreement, second: Agreement) -> str:
    if first.precision == second.precision == "fp32":
        return "fp32"
    return "half on 4 bits" if all("nf4" in (found.weights or "") for found in (first, second)) else "half"


def _loss_difference(one: float, other: float, kind: str) -> str:
    expected = f"expected a difference of at most {MAX_LOSS_DIFFERENCE[kind]:g}"
    return f"loss: {one:.6f} and {other:.6f} ({_relative_difference(one, other):.2g}), {expected}"


def _relative_difference(one: float, other: float) -> float:
    return abs(one - other) / max(abs(one), abs(other), SMALL_LOSS)
