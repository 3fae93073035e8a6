"""What is derived from the settings and the size of the data before the first step."""

from __future__ import annotations

from typing import Any

import pytest

from embedtune.config import TrainingConfig
from embedtune.errors import ConfigError
from embedtune.training.plan import Plan, default_lr, make_plan


def plan(pairs: int, **settings: Any) -> Plan:
    return make_plan(TrainingConfig(**settings), pairs)


@pytest.mark.parametrize(
    ("pairs", "batch_size"),
    [(2, 2), (10, 10), (100, 16), (500, 16), (511, 16), (512, 32), (1023, 32), (1024, 64), (2048, 128), (10**6, 128)],
)
def test_few_pairs_get_small_batches(pairs: int, batch_size: int) -> None:
    assert plan(pairs).batch_size == batch_size


def test_a_given_batch_size_is_kept() -> None:
    assert plan(1000, batch_size=300).batch_size == 300
    assert plan(1000, batch_size=1000, epochs=3).steps == 3
    with pytest.raises(
        ConfigError, match=r"--batch-size 3000 is more than the 1,000 pairs.*\nType:  --batch-size 1000"
    ):
        plan(1000, batch_size=3000)


def test_steps_are_epochs_of_batches() -> None:
    assert plan(1000, batch_size=64, epochs=3).steps == 48
    assert plan(1000, batch_size=64, epochs=0.5).steps == 8
    assert plan(1000, batch_size=64, epochs=0.001).steps == 1
    assert plan(1000, batch_size=64, epochs=3, accumulate=4).steps == 12
    assert plan(1000, batch_size=64, epochs=3, max_steps=7).steps == 7
    assert plan(1000, batch_size=64, epochs=3, max_steps=7, accumulate=4).steps == 7


def phases(pairs: int = 6400, **settings: Any) -> list[tuple[int, int, int, float, str]]:
    """First step, steps, batch size, learning rate and beginning of each phase."""
    found = make_plan(TrainingConfig(**settings), pairs, mining=True).phases
    begins = ["neighbours" if phase.neighbours else "mines" if phase.mines else "" for phase in found]
    return [(p.first_step, p.steps, p.batch_size, p.lr, how) for p, how in zip(found, begins, strict=True)]


def test_recipes_are_passes_over_the_pairs() -> None:
    assert phases() == [(0, 50, 128, 2e-3, ""), (50, 100, 128, 1e-3, "neighbours")]
    assert phases(recipe="quick") == [(0, 50, 128, 2e-3, "")]
    assert phases(recipe="thorough") == phases()
    assert plan(6400).phases[1:] == (), "without mining there are no phases for it"


def test_what_is_given_takes_the_place_of_the_recipe() -> None:
    assert phases(epochs=2) == [(0, 100, 128, 2e-3, ""), (100, 100, 128, 1e-3, "neighbours")]
    assert phases(mined_epochs=0) == [(0, 50, 128, 2e-3, "")]
    assert phases(max_steps=7) == [(0, 7, 128, 2e-3, "")]
    assert phases(max_steps=7, mined_epochs=1)[1:] == [(7, 50, 128, 1e-3, "neighbours")]
    assert phases(mined_lr=1e-4, mined_batch_size=32)[1:] == [(50, 400, 32, 1e-4, "neighbours")]
    assert phases(lr=1e-4, batch_size=32)[1:] == [(200, 400, 32, 5e-5, "neighbours")]
    assert phases(recipe="thorough", mined_epochs=0.5)[1:] == [(50, 25, 128, 1e-3, "neighbours")]
    assert phases(20) == [(0, 2, 16, 2e-3, ""), (2, 4, 16, 1e-3, "neighbours")]
    with pytest.raises(ConfigError, match="--mined-batch-size 30 is more than the 20 pairs"):
        phases(20, mined_batch_size=30)


def test_shuffled_batches_are_half_as_large_as_each_pair_takes_more() -> None:
    assert phases(mined_batches="shuffled")[1:] == [(50, 200, 64, 1e-3, "mines")]
    assert phases(lr=1e-4, batch_size=32, mined_batches="shuffled")[1:] == [(200, 800, 16, 5e-5, "mines")]
    assert phases(mined_batch_size=48, mined_batches="shuffled")[1][2] == 48
    assert phases(passage_once=True) == phases(mined_batches="shuffled")
    with pytest.raises(
        ConfigError, match=r"--mined-batches neighbours other passages.\nType:  --mined-batches shuffled"
    ):
        TrainingConfig(passage_once=True, mined_batches="neighbours")


def test_the_thorough_recipe_trains_three_times() -> None:
    assert [plan(100, recipe=name).trainings for name in ("quick", "default", "thorough")] == [1, 1, 3]
    assert plan(100, recipe="thorough", max_steps=7, mined_epochs=0).trainings == 3
    assert plan(100, recipe="thorough", trainings=1).trainings == 1
    assert plan(100, trainings=2).trainings == 2


def test_the_mean_of_the_weights_is_taken_where_negatives_are_mined() -> None:
    def averaged(**settings: Any) -> tuple[list[bool], str]:
        found = make_plan(TrainingConfig(**settings), 6400, mining=True)
        return [phase.averaged for phase in found.phases], found.schedule

    assert averaged() == ([False, False], "cosine")
    assert averaged(averaging="swa") == averaged(recipe="thorough") == ([False, True], "constant")
    assert averaged(averaging="swa", schedule="linear") == ([False, True], "linear")
    assert averaged(recipe="thorough", averaging="none") == ([False, False], "cosine")
    assert averaged(recipe="quick", averaging="swa") == ([False], "cosine"), "where nothing is mined"


def test_wider_encoders_learn_slower() -> None:
    assert [default_lr("lora", "default", width) for width in (128, 384, 768, 4096)] == [2e-3, 2e-3, 1e-3, 1.875e-4]
    assert default_lr("full", "default", 768) == 5e-5


def test_warm_up_leaves_a_step_to_train() -> None:
    assert plan(1000, max_steps=48).warmup_steps == 5
    assert plan(1000, max_steps=100, warmup_fraction=0.0).warmup_steps == 0
    assert plan(1000, max_steps=1).warmup_steps == 0
    assert plan(1000, max_steps=2, warmup_fraction=0.9).warmup_steps == 1


def test_about_five_evaluations() -> None:
    assert plan(1000, max_steps=100).eval_steps == 20
    assert plan(1000, max_steps=3).eval_steps == 1
    assert plan(1000, max_steps=101).eval_steps == 21
    assert plan(1000, max_steps=100, eval_steps=7).eval_steps == 7


@pytest.mark.parametrize(("dev_texts", "evaluations"), [(100, 10), (2_000, 4), (2_800, 3), (100_000, 3)])
def test_evaluations_are_as_many_as_the_training_is_worth(dev_texts: int, evaluations: int) -> None:
    """7,000 pairs three times are 42,000 texts; at the least there is one evaluation an epoch."""
    found = make_plan(TrainingConfig(), 7_000, mining=True, dev_texts=dev_texts)
    assert -(-found.steps // found.eval_steps) == evaluations
    assert make_plan(TrainingConfig(eval_steps=9), 7_000, mining=True, dev_texts=dev_texts).eval_steps == 9


def test_the_model_that_mines_is_evaluated() -> None:
    found = make_plan(TrainingConfig(eval_steps=40), 6400, mining=True)
    assert [step for step in range(found.steps + 1) if found.evaluates_at(step)] == [0, 40, 50, 80, 120, 150]
    quick = make_plan(TrainingConfig(recipe="quick", eval_steps=40), 6400, mining=True)
    assert [step for step in range(51) if quick.evaluates_at(step)] == [0, 40, 50]


def test_the_learning_rate_is_what_the_method_and_the_start_want() -> None:
    def lr(method: str, init: str = "default", **settings: Any) -> float:
        return make_plan(TrainingConfig(**settings), 1000, method=method, init=init).lr

    assert lr("lora") == lr("qlora") == lr("lora", "gaussian") == lr("qlora", "loftq") == 2e-3
    assert lr("full") == 1e-4
    assert lr("lora", "pissa") == 5e-4
    assert lr("lora", "pissa", lr=1e-3) == lr("full", lr=1e-3) == 1e-3
