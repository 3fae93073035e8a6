"""Medians and ratios of what was measured in several rounds."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import median
from typing import TypeVar

from benchmarks.jobs import OURS
from benchmarks.records import (
    EncodeMeasurement,
    GemmRates,
    MethodMeasurement,
    QualityMeasurement,
    TrainMeasurement,
    Workload,
)

Measurement = TypeVar("Measurement")
TrainRounds = Sequence[Mapping[str, TrainMeasurement]]
"""For each round, runner to measurement; a runner that failed is missing from then on."""
EncodeRounds = Sequence[Mapping[str, EncodeMeasurement]]
QualityRounds = Sequence[Mapping[str, QualityMeasurement]]
MethodRounds = Sequence[Mapping[str, Mapping[str, MethodMeasurement | None]]]
"""For each round, size to cell to measurement; None where memory ran out."""


@dataclass(frozen=True, kw_only=True)
class Ratio:
    """One runner's rate over another's, taken within each round: above 1 the first is faster."""

    median: float
    lowest: float
    highest: float


@dataclass(frozen=True, kw_only=True)
class TrainSummary:
    """One runner's medians over the rounds."""

    precision: str
    weights: str
    """Formats that they are held in."""
    pairs_per_second: float
    """Steps only, the data at hand."""
    tokens_per_second: float
    """Padding not counted."""
    pairs_per_second_with_data: float
    """Tokenising and collating included."""
    step_seconds: float
    """Over the steps of all rounds."""
    data_seconds: float
    peak_bytes: int
    """Largest of the rounds."""
    peak_above_loaded_bytes: int
    flop_utilisation: float
    """Operations that the step needs, a second, as a share of the highest rate that the device showed in the round."""
    gemm_share: float
    """The same as a share of its rate in the model's own feed-forward layer."""
    mean_loss: float


@dataclass(frozen=True, kw_only=True)
class QualitySummary:
    """One runner's way to the target; medians over the rounds."""

    precision: str
    weights: str
    base: float
    """Dev NDCG@10 before training."""
    best: float
    """Highest that any round saw."""
    steps: float | None
    """To the target; None if a round did not reach it."""
    seconds: float | None
    """Of training until the target was reached."""


@dataclass(frozen=True, kw_only=True)
class EncodeSummary:
    """One runner's medians over the rounds."""

    precision: str
    texts_per_second: float
    peak_bytes: int
    peak_above_loaded_bytes: int


@dataclass(frozen=True, kw_only=True)
class MethodSummary:
    """One cell's medians over the rounds; memory is the largest of the rounds, what the bare process held taken off."""

    loaded_bytes: int
    """Held once the model was trainable."""
    load_peak_bytes: int
    peak_bytes: int
    """Of the steps."""
    step_seconds: float
    """Over the steps of all rounds."""
    pairs_per_second: float
    tokens_per_step: float
    trainable_parameters: int
    first_loss: float
    last_loss: float


Rates = Mapping[str, Mapping[int, float]]
"""Runner to round to what it did a second."""


def train_ratios(rounds: TrainRounds, *, refused: Collection[frozenset[str]] = ()) -> dict[str, dict[str, Ratio]]:
    """As `ratios`; a round's is the median over its steps, each of which is of the same batch for all."""
    steps = {runner: dict(found) for runner, found in _by_runner(rounds).items()}

    def within_round(one: TrainMeasurement, peer: TrainMeasurement) -> float:
        return median(theirs / ours for ours, theirs in zip(one.step_seconds, peer.step_seconds, strict=True))

    def compare(one: str, peer: str) -> Ratio | None:
        both = steps[one].keys() & steps[peer].keys()
        return _ratio([within_round(steps[one][number], steps[peer][number]) for number in sorted(both)])

    return _compared(steps, compare, refused)


def encode_rates(rounds: EncodeRounds) -> dict[str, dict[int, float]]:
    """Runner to its texts a second in each round that it finished."""
    return {
        runner: {number: measured.texts / measured.seconds for number, measured in found}
        for runner, found in _by_runner(rounds).items()
    }


def ratios(rates: Rates, *, refused: Collection[frozenset[str]] = ()) -> dict[str, dict[str, Ratio]]:
    """Each of embedtune's runners to each peer to the ratio of their rates, taken round by round.

    Those that may not be compared have none, nor have those that finished no round both.
    """

    def compare(one: str, peer: str) -> Ratio | None:
        return _ratio([rates[one][number] / rates[peer][number] for number in rates[one] if number in rates[peer]])

    return _compared(rates, compare, refused)


def _ratio(each: Sequence[float]) -> Ratio | None:
    return Ratio(median=median(each), lowest=min(each), highest=max(each)) if each else None


def _compared(
    runners: Collection[str], compare: Callable[[str, str], Ratio | None], refused: Collection[frozenset[str]]
) -> dict[str, dict[str, Ratio]]:
    compared: dict[str, dict[str, Ratio]] = {}
    for one in filter(OURS.__contains__, runners):
        for peer in (runner for runner in runners if runner not in OURS):
            found = None if frozenset((one, peer)) in refused else compare(one, peer)
            if found is not None:
                compared.setdefault(one, {})[peer] = found
    return compared


def median_gemm(gemms: Sequence[GemmRates]) -> GemmRates:
    """Of each rate over the rounds."""
    rates = {name: median(getattr(g, name) for g in gemms) for name in ("fp32", "bf16", "square_fp32", "square_bf16")}
    return replace(gemms[0], **rates)


def summarize_train(rounds: TrainRounds, work: Workload, gemms: Sequence[GemmRates]) -> dict[str, TrainSummary]:
    """Runner to its medians.

    Args:
        rounds: measurements.
        work: what was done in the timed steps of each measurement.
        gemms: rates of the device, one a round.
    """
    return {
        runner: _train_summary([measured for _, measured in found], work, [gemms[number] for number, _ in found])
        for runner, found in _by_runner(rounds).items()
    }


def summarize_encode(rounds: EncodeRounds) -> dict[str, EncodeSummary]:
    """Runner to its medians."""
    return {
        runner: EncodeSummary(
            precision=found[0][1].precision,
            texts_per_second=median(measured.texts / measured.seconds for _, measured in found),
            peak_bytes=max(measured.peak_bytes for _, measured in found),
            peak_above_loaded_bytes=max(_above_loaded(measured) for _, measured in found),
        )
        for runner, found in _by_runner(rounds).items()
    }


def summarize_quality(rounds: QualityRounds, target: float) -> dict[str, QualitySummary]:
    """Runner to how long it took to that dev NDCG@10."""
    summaries = {}
    for runner, found in _by_runner(rounds).items():
        measured = [m for _, m in found]
        reached = [m for m in measured if m.ndcg[-1] >= target]
        always = len(reached) == len(measured)
        summaries[runner] = QualitySummary(
            precision=measured[0].precision,
            weights=measured[0].weights,
            base=measured[0].ndcg[0],
            best=max(max(m.ndcg) for m in measured),
            steps=median(m.steps[-1] for m in reached) if always else None,
            seconds=median(m.seconds[-1] for m in reached) if always else None,
        )
    return summaries


def quality_ratios(
    rounds: QualityRounds, target: float, *, refused: Collection[frozenset[str]] = ()
) -> dict[str, dict[str, Ratio]]:
    """How many times as long each peer took to the target, in rounds in which both reached it after some training."""
    rates = {
        runner: {number: 1 / m.seconds[-1] for number, m in found if m.ndcg[-1] >= target and m.steps[-1] > 0}
        for runner, found in _by_runner(rounds).items()
    }
    return ratios(rates, refused=refused)


def summarize_methods(rounds: MethodRounds) -> dict[str, dict[str, MethodSummary | None]]:
    """Size to cell to its medians; None if it ran out of memory in any round."""
    return {
        size: {cell: _method_summary([results[size][cell] for results in rounds]) for cell in cells}
        for size, cells in rounds[0].items()
    }


def _method_summary(rounds: Sequence[MethodMeasurement | None]) -> MethodSummary | None:
    measured = [m for m in rounds if m is not None]
    if len(measured) < len(rounds):
        return None
    first = measured[0]
    return MethodSummary(
        loaded_bytes=max(m.loaded_bytes - m.process_bytes for m in measured),
        load_peak_bytes=max(m.load_peak_bytes - m.process_bytes for m in measured),
        peak_bytes=max(m.peak_bytes - m.process_bytes for m in measured),
        step_seconds=median(step for m in measured for step in m.step_seconds),
        pairs_per_second=median(m.batch_size * len(m.step_seconds) / sum(m.step_seconds) for m in measured),
        tokens_per_step=first.tokens / len(first.losses),
        trainable_parameters=first.trainable_parameters,
        first_loss=first.losses[0],
        last_loss=first.losses[-1],
    )


def _train_summary(measured: list[TrainMeasurement], work: Workload, gemms: Sequence[GemmRates]) -> TrainSummary:
    # Of as many median steps: one that stalls is not a rate.
    seconds = [len(m.step_seconds) * median(m.step_seconds) for m in measured]
    with_data = [s + m.data_seconds * len(m.step_seconds) for s, m in zip(seconds, measured, strict=True)]
    precision = measured[0].precision
    return TrainSummary(
        precision=precision,
        weights=measured[0].weights,
        pairs_per_second=median(work.pairs / s for s in seconds),
        tokens_per_second=median(work.tokens / s for s in seconds),
        pairs_per_second_with_data=median(work.pairs / s for s in with_data),
        step_seconds=median(step for m in measured for step in m.step_seconds),
        data_seconds=median(m.data_seconds for m in measured),
        peak_bytes=max(m.peak_bytes for m in measured),
        peak_above_loaded_bytes=max(_above_loaded(m) for m in measured),
        flop_utilisation=median(work.flops / s / g.best(precision) for s, g in zip(seconds, gemms, strict=True)),
        gemm_share=median(work.flops / s / g.layer(precision) for s, g in zip(seconds, gemms, strict=True)),
        mean_loss=median(m.mean_loss for m in measured),
    )


def _by_runner(rounds: Sequence[Mapping[str, Measurement]]) -> dict[str, list[tuple[int, Measurement]]]:
    """Runner to the rounds that it finished, counted from 0, and what it took in them."""
    found: dict[str, list[tuple[int, Measurement]]] = {}
    for number, results in enumerate(rounds):
        for runner, measured in results.items():
            found.setdefault(runner, []).append((number, measured))
    return found


def _above_loaded(measured: TrainMeasurement | EncodeMeasurement) -> int:
    return max(0, measured.peak_bytes - measured.loaded_bytes)
