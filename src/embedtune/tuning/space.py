"""Which values of which settings a search may try. Every range has the default recipe's value in its middle."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from embedtune.config import AdapterConfig, TrainConfig
from embedtune.config.loss import SCALES
from embedtune.config.tuning import TuneConfig
from embedtune.errors import ConfigError

Values = Mapping[str, float]
"""A value for each dial, by its name."""

LR_FACTOR = 5.0
"""The learning rate is searched from a fifth of the default to five times it; the other factors likewise."""
EPOCHS_FACTOR = 2.0
SCALE_FACTOR = 2.5
BATCH_FACTOR = 4
RANK_FACTOR = 4
SMALLEST_BATCH = 8
FEWEST_STEPS = 4
"""Of an epoch: a larger batch would make too few steps of it."""


@dataclass(frozen=True, kw_only=True)
class Dial:
    """One setting that is searched: between `low` and `high` on a logarithmic scale, or among `choices`."""

    name: str
    """Its option."""
    default: float
    low: float
    high: float
    choices: tuple[int, ...] = ()


def search_space(
    config: TuneConfig, pairs: int, *, usable_adapter: Callable[[AdapterConfig], bool] = lambda _: True
) -> tuple[Dial, ...]:
    """The dials of a search.

    Args:
        config: with learning rate, batch size and epochs filled in.
        pairs: rows to train on.
        usable_adapter: whether the model takes such an adapter.

    Raises:
        ConfigError: no dial is left, or there are too few rows to search the batch size.
    """
    names = config.tuning.dials or _default_dials(config, pairs)
    dials = tuple(_dial(name, config, pairs, usable_adapter) for name in names)
    for dial in dials:
        if len(dial.choices) == 1:
            raise ConfigError(
                f"--dials {dial.name}: {dial.default:g} is the only value that {pairs:,} training pairs and this model "
                f"allow.\nLeave {dial.name} out of --dials."
            )
    return dials


def default_values(dials: tuple[Dial, ...]) -> Values:
    """Those of the default recipe."""
    return {dial.name: dial.default for dial in dials}


def with_values(config: TrainConfig, values: Values, *, seed: int | None = None) -> TrainConfig:
    """The training config of one trial.

    The size of an adapter's update stays with another rank: alpha changes as the rank does, or as its root for rsLoRA.

    Args:
        config: of the search; a `TuneConfig` loses its section [tuning].
        values: of the dials.
        seed: the config's own if not given.
    """
    adapter, loss = config.adapter, config.loss
    training = config.training
    if "rank" in values and values["rank"] != adapter.rank:
        rank = int(values["rank"])
        growth = rank / adapter.rank
        alpha = adapter.alpha * (math.sqrt(growth) if adapter.rslora else growth)
        adapter = replace(adapter, rank=rank, alpha=alpha)
    if "scale" in values:
        loss = replace(loss, scale=values["scale"])
    changed: dict[str, Any] = {}
    if "lr" in values:
        changed["lr"] = values["lr"]
    if "batch-size" in values:
        changed["batch_size"] = int(values["batch-size"])
    if "epochs" in values:
        changed["epochs"] = values["epochs"]
    output = config.output if seed is None else replace(config.output, seed=seed)
    sections = {name: getattr(config, name) for name in TrainConfig.__dataclass_fields__}
    return TrainConfig(
        **{**sections, "adapter": adapter, "loss": loss, "training": replace(training, **changed), "output": output}
    )


def _default_dials(config: TuneConfig, pairs: int) -> tuple[str, ...]:
    batches = _batch_sizes(config, pairs)
    fixed = {"epochs": config.training.max_steps is not None, "batch-size": len(batches) == 1}
    return tuple(name for name in ("lr", "batch-size", "epochs", "scale") if not fixed.get(name, False))


def _dial(name: str, config: TuneConfig, pairs: int, usable_adapter: Callable[[AdapterConfig], bool]) -> Dial:
    training, adapter = config.training, config.adapter
    if name == "batch-size":
        return _among(name, training.batch_size or 0, _batch_sizes(config, pairs))
    if name == "rank":
        ranks = _powers(adapter.rank, RANK_FACTOR, at_least=1)
        return _among(name, adapter.rank, [rank for rank in ranks if usable_adapter(replace(adapter, rank=rank))])
    default, factor = {
        "lr": (training.lr or 0.0, LR_FACTOR),
        "epochs": (training.epochs or 0.0, EPOCHS_FACTOR),
        "scale": (config.loss.scale, SCALE_FACTOR),
    }[name]
    low, high = default / factor, default * factor
    if name == "scale" and config.loss.learn_scale:
        low, high = max(low, SCALES[0]), min(high, SCALES[1])
    return Dial(name=name, default=default, low=low, high=high)


def _batch_sizes(config: TuneConfig, pairs: int) -> list[int]:
    default = config.training.batch_size or 0
    return _powers(default, BATCH_FACTOR, at_least=SMALLEST_BATCH, at_most=max(default, pairs // FEWEST_STEPS))


def _powers(default: int, factor: int, *, at_least: int, at_most: int | None = None) -> list[int]:
    """The powers of two from a fraction of the default to a multiple of it, and the default itself."""
    low, high = max(at_least, default / factor), default * factor
    high = high if at_most is None else min(high, at_most)
    powers = {1 << exponent for exponent in range(32) if low <= 1 << exponent <= high}
    return sorted({*powers, default})


def _among(name: str, default: int, choices: list[int]) -> Dial:
    return Dial(name=name, default=default, low=choices[0], high=choices[-1], choices=tuple(choices))
