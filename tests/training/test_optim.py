"""The optimiser's groups and the shape of the learning-rate schedule."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn
from transformers import get_scheduler

from embedtune.config import TrainingConfig
from embedtune.errors import ConfigError
from embedtune.training.optim import allocate_moments, build_optimizer, build_scheduler, check_8bit
from embedtune.training.plan import make_plan


def rates(steps: int, **settings: Any) -> list[float]:
    """The learning rate of every step."""
    config = TrainingConfig(lr=0.1, max_steps=steps, **settings)
    optimizer = build_optimizer([nn.Parameter(torch.zeros(2, 2))], config, make_plan(config, 1000))
    scheduler = build_scheduler(optimizer, make_plan(config, 1000))
    seen = []
    for _ in range(steps):
        seen.append(float(scheduler.get_last_lr()[0]))
        optimizer.step()
        scheduler.step()
    return [*seen, float(scheduler.get_last_lr()[0])]


@pytest.mark.parametrize(("schedule", "end"), [("cosine", 0.0), ("linear", 0.0), ("constant", 0.1)])
def test_warm_up_peak_and_end(schedule: str, end: float) -> None:
    seen = rates(20, schedule=schedule, warmup_fraction=0.2)
    assert seen[:5] == pytest.approx([0.0, 0.025, 0.05, 0.075, 0.1])
    assert seen[4:] == sorted(seen[4:], reverse=True)
    assert seen[-1] == pytest.approx(end, abs=1e-12)


@pytest.mark.parametrize(
    ("schedule", "name"), [("cosine", "cosine"), ("linear", "linear"), ("constant", "constant_with_warmup")]
)
@pytest.mark.parametrize(("steps", "warmup"), [(20, 0.2), (7, 0.0), (1, 0.5), (3, 0.9)])
def test_one_phase_is_the_schedule_of_transformers(schedule: str, name: str, steps: int, warmup: float) -> None:
    optimizer = torch.optim.AdamW([nn.Parameter(torch.zeros(2, 2))], lr=0.1)
    rising = make_plan(TrainingConfig(max_steps=steps, warmup_fraction=warmup), 1000).warmup_steps
    theirs = get_scheduler(name, optimizer, num_warmup_steps=rising, num_training_steps=steps)
    expected = []
    for _ in range(steps + 1):
        expected.append(theirs.get_last_lr()[0])
        optimizer.step()
        theirs.step()
    assert rates(steps, schedule=schedule, warmup_fraction=warmup) == pytest.approx(expected, abs=1e-15)


TWO_PHASES: dict[str, Any] = {
    "lr": 0.1,
    "mined_lr": 0.02,
    "batch_size": 100,
    "mined_batch_size": 50,
    "epochs": 1,
    "mined_epochs": 1,
}


def rates_of_two_phases(**settings: Any) -> tuple[list[float], list[float]]:
    """The learning rates of the ten steps of the first phase, and of the twenty of the one with mined negatives."""
    config = TrainingConfig(**TWO_PHASES, **settings)
    plan = make_plan(config, 1000, mining=True)
    optimizer = build_optimizer([nn.Parameter(torch.zeros(2, 2))], config, plan)
    scheduler = build_scheduler(optimizer, plan)
    seen = []
    for _ in range(plan.steps):
        seen.append(float(scheduler.get_last_lr()[0]))
        optimizer.step()
        scheduler.step()
    return seen[:10], seen[10:]


def test_each_phase_rises_to_its_own_peak_and_falls() -> None:
    first, second = rates_of_two_phases()
    assert (first[:2], second[:3]) == ([0.0, 0.1], [0.0, 0.01, 0.02])
    assert first[1:] == sorted(first[1:], reverse=True)
    assert second[2:] == sorted(second[2:], reverse=True)
    assert max(first[-1] / 0.1, second[-1] / 0.02) < 0.04


def test_where_the_mean_of_the_weights_is_taken_the_rate_stays_unless_it_is_told_to_fall() -> None:
    first, second = rates_of_two_phases(averaging="swa")
    assert (set(first[1:]), set(second[2:])) == ({0.1}, {0.02})
    assert rates_of_two_phases(averaging="swa", schedule="cosine") == rates_of_two_phases()


def test_without_warm_up_the_first_step_has_the_peak() -> None:
    assert rates(10, warmup_fraction=0.0)[0] == 0.1


def test_biases_and_norms_are_not_decayed_and_frozen_weights_not_touched() -> None:
    model = nn.Sequential(nn.Linear(3, 3), nn.LayerNorm(3), nn.Linear(3, 3).requires_grad_(False))
    config = TrainingConfig(weight_decay=0.5)
    optimizer = build_optimizer(model.parameters(), config, make_plan(config, 1000))
    decay = {id(p): group["weight_decay"] for group in optimizer.param_groups for p in group["params"]}
    assert decay == {
        id(model[0].weight): 0.5,
        id(model[0].bias): 0.0,
        id(model[1].weight): 0.0,
        id(model[1].bias): 0.0,
    }


@pytest.mark.parametrize("name", ["adamw", "adamw8bit"])
def test_moments_made_before_the_first_step_are_those_that_it_would_make(name: Any) -> None:
    """A large tensor, whose moments have 8 bits, a small one and a bias; one that never gets a gradient."""
    if name == "adamw8bit":
        pytest.importorskip("bitsandbytes")
    ends = []
    for early in (True, False):
        torch.manual_seed(0)
        model = nn.ModuleDict({"used": nn.Sequential(nn.Linear(64, 128), nn.Linear(128, 2)), "unused": nn.Linear(2, 2)})
        config = TrainingConfig(lr=0.1, optimizer=name)
        optimizer = build_optimizer(model.parameters(), config, make_plan(config, 1000))
        made = {}
        if early:
            allocate_moments(optimizer)
            made = {key: value.data_ptr() for key, value in _tensors(optimizer, model["used"]).items()}
            assert made
        for _ in range(3):
            model["used"](torch.randn(4, 64)).square().mean().backward()
            optimizer.step()
            optimizer.zero_grad()
        state = _tensors(optimizer, model["used"])
        assert {key: state[key].data_ptr() for key in made} == made
        ends.append({**state, **{key: p.detach() for key, p in model.named_parameters()}})
    early_end, late_end = ends
    assert early_end.keys() == late_end.keys()
    assert all(torch.equal(early_end[key], late_end[key]) for key in late_end)
    assert {key: value.dtype for key, value in early_end.items()} == {key: v.dtype for key, v in late_end.items()}


def _tensors(optimizer: torch.optim.Optimizer, model: nn.Module) -> dict[str, torch.Tensor]:
    """What the optimiser holds for these parameters."""
    return {
        f"{name} {key}": value
        for name, parameter in model.named_parameters()
        for key, value in optimizer.state[parameter].items()
        if isinstance(value, torch.Tensor)
    }


def test_eight_bit_moments() -> None:
    """Where a tensor is large enough for them: bitsandbytes keeps fewer than 4,096 values in 32 bits."""
    torch.manual_seed(0)
    model = nn.Linear(64, 128)
    config = TrainingConfig(lr=0.1, optimizer="adamw8bit")
    optimizer = build_optimizer(model.parameters(), config, make_plan(config, 1000))
    model(torch.randn(4, 64)).square().mean().backward()
    before = model.weight.detach().clone()
    optimizer.step()
    assert optimizer.state[model.weight]["state1"].dtype == torch.uint8
    assert optimizer.state[model.bias]["state1"].dtype == torch.float32
    assert (model.weight - before).abs().mean().item() == pytest.approx(0.1, rel=0.1)  # Adam's first step is lr


def test_eight_bit_moments_where_there_are_none(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise RuntimeError("no kernel for this device\nand more")

    monkeypatch.setattr("bitsandbytes.optim.AdamW8bit.step", fail)
    with pytest.raises(
        ConfigError, match=r"--optimizer adamw8bit can't be used on cpu: no kernel for this device\.\nType:  .* adamw\."
    ):
        check_8bit(torch.device("cpu"))
