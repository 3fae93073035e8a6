"""Medians and ratios of what was measured in several rounds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import median

from benchmarks.records import EncodeMeasurement, GemmRates, MethodMeasurement, TrainMeasurement, Workload

TrainRounds = Sequence[Mapping[str, TrainMeasurement]]
"""For each round, runner to measurement."""
EncodeRounds = Sequence[Mapping[str, EncodeMeasurement]]


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
    gemm_share: float
    """Operations that the step needs, a second, as a share of the device's rate in one large layer."""
    mean_loss: float


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


def ratio(ours: Sequence[float], peers: Sequence[float]) -> Ratio:
    """Rates of the same rounds, divided round by round."""
    each = [one / other for one, other in zip(ours, peers, strict=True)]
    return Ratio(median=median(each), lowest=min(each), highest=max(each))


def train_rates(rounds: TrainRounds, work: Workload) -> dict[str, list[float]]:
    """Runner to its pairs a second in each round."""
    return {runner: [work.pairs / sum(results[runner].step_seconds) for results in rounds] for runner in rounds[0]}


def encode_rates(rounds: EncodeRounds) -> dict[str, list[float]]:
    """Runner to its texts a second in each round."""
    return {runner: [results[runner].texts / results[runner].seconds for results in rounds] for runner in rounds[0]}


def ratios(rates: Mapping[str, Sequence[float]]) -> dict[str, dict[str, Ratio]]:
    """Each of embedtune's runners to each peer to their ratio."""
    ours = [runner for runner in rates if runner.startswith("embedtune")]
    peers = [runner for runner in rates if runner not in ours]
    return {one: {peer: ratio(rates[one], rates[peer]) for peer in peers} for one in ours}


def summarize_train(rounds: TrainRounds, work: Workload, gemms: Sequence[GemmRates]) -> dict[str, TrainSummary]:
    """Runner to its medians.

    Args:
        rounds: measurements.
        work: what was done in the timed steps of each measurement.
        gemms: rates of the device, one a round.
    """
    return {runner: _train_summary([results[runner] for results in rounds], work, gemms) for runner in rounds[0]}


def summarize_encode(rounds: EncodeRounds) -> dict[str, EncodeSummary]:
    """Runner to its medians."""
    rates = encode_rates(rounds)
    return {
        runner: EncodeSummary(
            precision=first.precision,
            texts_per_second=median(rates[runner]),
            peak_bytes=max(results[runner].peak_bytes for results in rounds),
            peak_above_loaded_bytes=max(_above_loaded(results[runner]) for results in rounds),
        )
        for runner, first in rounds[0].items()
    }


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
    seconds = [sum(m.step_seconds) for m in measured]
    with_data = [sum(m.step_seconds) + m.data_seconds * len(m.step_seconds) for m in measured]
    rates = [gemm.fp32 if measured[0].precision == "fp32" else gemm.bf16 for gemm in gemms]
    return TrainSummary(
        precision=measured[0].precision,
        pairs_per_second=median(work.pairs / s for s in seconds),
        tokens_per_second=median(work.tokens / s for s in seconds),
        pairs_per_second_with_data=median(work.pairs / s for s in with_data),
        step_seconds=median(step for m in measured for step in m.step_seconds),
        data_seconds=median(m.data_seconds for m in measured),
        peak_bytes=max(m.peak_bytes for m in measured),
        peak_above_loaded_bytes=max(_above_loaded(m) for m in measured),
        gemm_share=median(work.flops / s / rate for s, rate in zip(seconds, rates, strict=True)),
        mean_loss=median(m.mean_loss for m in measured),
    )


def _above_loaded(measured: TrainMeasurement | EncodeMeasurement) -> int:
    return max(0, measured.peak_bytes - measured.loaded_bytes)
