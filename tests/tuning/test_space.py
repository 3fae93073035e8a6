"""What a search may try: ranges around the default recipe, within what the data and the model allow."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from embedtune.config import AdapterConfig, LossConfig, TrainConfig, TrainingConfig
from embedtune.config.tuning import TuneConfig, TuningConfig
from embedtune.config_file import load_config, to_toml
from embedtune.errors import ConfigError
from embedtune.tuning.space import default_values, search_space, with_values


def config(*dials: str, **sections: Any) -> TuneConfig:
    return TuneConfig(
        training=sections.pop("training", TrainingConfig(lr=2e-3, batch_size=64, epochs=2.0)),
        tuning=TuningConfig(dials=dials),
        **sections,
    )


def test_every_range_holds_the_default_recipe() -> None:
    given = config("lr", "batch-size", "epochs", "rank", "scale")
    dials = search_space(given, 4_000)
    assert default_values(dials) == {"lr": 2e-3, "batch-size": 64, "epochs": 2.0, "rank": 16, "scale": 20.0}
    for dial in dials:
        assert dial.low < dial.default < dial.high
        assert not dial.choices or dial.default in dial.choices
    assert with_values(given, default_values(dials)) == TrainConfig(training=given.training)


@pytest.mark.parametrize(
    ("pairs", "default", "choices"),
    [
        (4_000, 64, (16, 32, 64, 128, 256)),
        (300, 64, (16, 32, 64)),
        (4_000, 48, (16, 32, 48, 64, 128)),
        (40, 16, (8, 16)),
    ],
)
def test_batches_are_powers_of_two_that_the_data_fills(pairs: int, default: int, choices: tuple[int, ...]) -> None:
    given = config("batch-size", training=TrainingConfig(lr=1e-3, batch_size=default))
    assert search_space(given, pairs)[0].choices == choices


def test_dials_that_the_settings_fix_are_left_out_or_refused() -> None:
    steps = TrainingConfig(lr=1e-3, batch_size=64, max_steps=9)
    assert [dial.name for dial in search_space(config(training=steps), 999)] == ["lr", "batch-size", "scale"]
    few = config(training=TrainingConfig(lr=1e-3, batch_size=6))
    assert [dial.name for dial in search_space(few, 20)] == ["lr", "epochs", "scale"]
    with pytest.raises(ConfigError, match="--dials batch-size: 6 is the only value"):
        search_space(config("batch-size", training=few.training), 20)
    with pytest.raises(ConfigError, match="--max-steps 9 says how long"):
        config("epochs", training=steps)
    with pytest.raises(ConfigError, match="--method full has no rank"):
        config("rank", adapter=AdapterConfig(method="full"))


def test_a_learned_scale_is_tried_where_it_may_begin() -> None:
    given = config("scale", loss=LossConfig(learn_scale=True, scale=60.0))
    dial = search_space(given, 999)[0]
    assert (dial.low, dial.high) == (24.0, 100.0)
    assert with_values(given, {"scale": dial.high}).loss.scale == 100.0


def test_ranks_that_the_model_refuses_are_not_tried() -> None:
    dial = search_space(config("rank"), 999, usable_adapter=lambda adapter: adapter.rank <= 32)[0]
    assert dial.choices == (4, 8, 16, 32)


@pytest.mark.parametrize(("rslora", "alpha"), [(False, 128.0), (True, 64.0)])
def test_the_size_of_the_update_stays_with_another_rank(rslora: bool, alpha: float) -> None:
    given = config("rank", adapter=AdapterConfig(rslora=rslora))
    adapter = with_values(given, {"rank": 64}).adapter
    assert (adapter.rank, adapter.alpha) == (64, alpha)


def test_values_go_where_the_options_do() -> None:
    trial = with_values(config(), {"lr": 1e-4, "batch-size": 32, "epochs": 1.5, "scale": 30.0}, seed=7)
    assert trial.training == TrainingConfig(lr=1e-4, batch_size=32, epochs=1.5)
    assert trial.loss == LossConfig(scale=30.0)
    assert trial.output.seed == 7


def test_dials_may_have_commas_and_the_config_is_read_back(tmp_path: Path) -> None:
    given = replace(config("lr,scale", "rank"), tuning=TuningConfig(dials=("lr,scale", "rank"), time_budget="1h"))
    assert given.tuning.dials == ("lr", "scale", "rank")
    (tmp_path / "config.toml").write_text(to_toml(given))
    assert load_config(TuneConfig, tmp_path / "config.toml") == given


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"dials": ("lr,speed",)}, "--dials is speed, expected some of lr, batch-size"),
        ({"dials": ("lr", "lr")}, "--dials is lr,lr, expected each name once"),
        ({"trials": 0}, "--trials is 0, expected 1 or more"),
        ({"repeats": -1}, "--repeats is -1"),
        ({"time_budget": "soon"}, "--time-budget is 'soon', expected a length of time"),
    ],
)
def test_what_can_not_be_searched_is_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        TuningConfig(**options)


def test_the_time_of_one_training_is_not_that_of_a_search() -> None:
    with pytest.raises(ConfigError, match="Type:  --time-budget 5m"):
        config(training=TrainingConfig(max_time="5m"))
