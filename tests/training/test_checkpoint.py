"""A checkpoint holds everything a run needs to go on as if it had never stopped."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Literal

import pytest
import torch
from torch import nn
from torch.optim.lr_scheduler import LRScheduler

from embedtune.config import TrainingConfig
from embedtune.errors import OutputError
from embedtune.training.checkpoint import OPTIMIZER, STATE, WEIGHTS, Checkpoints, Progress
from embedtune.training.optim import build_optimizer, build_scheduler
from embedtune.training.plan import make_plan

Parts = tuple[Any, torch.optim.Optimizer, LRScheduler]


def parts(optimizer_name: Literal["adamw", "adamw8bit"] = "adamw", width: int = 4) -> Parts:
    """What one process trains with; dropout makes the random state matter."""
    torch.manual_seed(0)
    config = TrainingConfig(lr=0.1, max_steps=20, optimizer=optimizer_name)
    model = nn.Sequential(nn.Linear(4, width).requires_grad_(False), nn.Dropout(0.5), nn.Linear(width, 1))
    plan = make_plan(config, 100)
    optimizer = build_optimizer(model.parameters(), config, plan)
    return model, optimizer, build_scheduler(optimizer, config, plan)


def step(parts: Parts, times: int = 1) -> None:
    model, optimizer, scheduler = parts
    for _ in range(times):
        model(torch.ones(8, 4)).square().mean().backward()
        optimizer.step()
        scheduler.step()
        optimizer.zero_grad()


def weights(model: nn.Module) -> list[torch.Tensor]:
    return [parameter.detach().clone() for parameter in model.parameters()]


def moments(optimizer: torch.optim.Optimizer) -> list[torch.Tensor]:
    state = optimizer.state_dict()["state"]
    return [state[index][key].clone() for index in sorted(state) for key in sorted(state[index])]


def everything(parts: Parts) -> dict[str, list[torch.Tensor]]:
    model, optimizer, scheduler = parts
    return {
        "weights": weights(model),
        "moments": moments(optimizer),
        "schedule": [torch.tensor(scheduler.get_last_lr())],
        "learning rates": [torch.tensor(group["lr"]) for group in optimizer.param_groups],
        "random state": [torch.get_rng_state()],
    }


def test_everything_comes_back_bit_for_bit(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path, keep_last=1)
    first = parts()
    step(first, 5)
    progress = Progress(
        step=5,
        pairs=120,
        tokens=1200,
        seconds=0.1 + 0.2,
        best_step=3,
        best_metric=1 / 3,
        evaluations_without_gain=1,
        losses=[0.1, 1e-9],
        evaluations=[{"step": 3, "ndcg@10": 1 / 3}],
    )
    checkpoints.save(*first, progress)
    saved = everything(first)
    step(first, 3)
    after = weights(first[0])

    torch.manual_seed(99)
    second = parts()
    with torch.no_grad():
        second[0][2].weight.fill_(7.0)
    assert checkpoints.load(5, *second) == progress
    restored = everything(second)
    for name, tensors in saved.items():
        assert all(torch.equal(one, other) for one, other in zip(tensors, restored[name], strict=True)), name
    step(second, 3)
    assert all(torch.equal(one, other) for one, other in zip(weights(second[0]), after, strict=True))


def test_eight_bit_moments_come_back_bit_for_bit(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path, keep_last=1)
    first = parts("adamw8bit", width=5_000)
    step(first, 5)
    assert torch.uint8 in {
        tensor.dtype for tensor in first[1].state[first[0][2].weight].values() if torch.is_tensor(tensor)
    }
    checkpoints.save(*first, Progress(step=5))
    step(first, 3)

    second = parts("adamw8bit", width=5_000)
    checkpoints.load(5, *second)
    step(second, 3)
    assert all(torch.equal(one, other) for one, other in zip(weights(second[0]), weights(first[0]), strict=True))


def test_a_run_without_an_evaluation_yet(tmp_path: Path) -> None:
    """The best metric so far is minus infinity."""
    checkpoints = Checkpoints(tmp_path, keep_last=1)
    checkpoints.save(*parts(), Progress())
    assert checkpoints.load(0, *parts()) == Progress()


def test_only_what_is_trained_is_saved(tmp_path: Path) -> None:
    from safetensors.torch import load_file

    checkpoints = Checkpoints(tmp_path, keep_last=1)
    checkpoints.save(*parts(), Progress(step=1))
    assert set(load_file(checkpoints.path(1) / WEIGHTS)) == {"2.weight", "2.bias"}


@pytest.mark.parametrize(
    ("keep_last", "best", "kept"),
    [(1, 6, [6]), (1, 2, [2, 6]), (2, 2, [2, 5, 6]), (2, 5, [5, 6]), (9, 1, [1, 2, 3, 4, 5, 6])],
)
def test_the_last_few_and_the_best_are_kept(keep_last: int, best: int, kept: list[int], tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path, keep_last=keep_last)
    for number in range(1, 7):
        checkpoints.save(*parts(), Progress(step=number, best_step=min(best, number)))
    assert checkpoints.steps() == kept
    assert sorted(path.name for path in tmp_path.iterdir()) == [f"step-{number:08d}" for number in kept]


def test_an_unfinished_checkpoint_does_not_count_and_is_replaced(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path, keep_last=2)
    (tmp_path / ".step-00000004.tmp").mkdir()
    (tmp_path / ".step-00000004.tmp" / WEIGHTS).write_text("half")
    (tmp_path / "step-00000002").mkdir()
    assert checkpoints.steps() == []
    checkpoints.save(*parts(), Progress(step=4))
    assert checkpoints.steps() == [4]
    checkpoints.load(4, *parts())


def test_no_folder_yet(tmp_path: Path) -> None:
    assert Checkpoints(tmp_path / "missing", keep_last=1).steps() == []


def test_saving_a_step_again_replaces_it(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path, keep_last=1)
    checkpoints.save(*parts(), Progress(step=4, pairs=1))
    checkpoints.save(*parts(), Progress(step=4, pairs=2))
    assert checkpoints.load(4, *parts()).pairs == 2


@pytest.mark.parametrize(
    ("name", "damage"),
    [
        (WEIGHTS, "cut"),
        (OPTIMIZER, "cut"),
        (STATE, "cut"),
        (WEIGHTS, "missing"),
        (OPTIMIZER, "missing"),
    ],
)
def test_a_damaged_checkpoint_is_named_with_what_to_do(name: str, damage: str, tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path, keep_last=1)
    checkpoints.save(*parts(), Progress(step=4))
    file = checkpoints.path(4) / name
    if damage == "cut":
        file.write_bytes(file.read_bytes()[:40])
    else:
        file.unlink()
    with pytest.raises(OutputError, match=r"step-00000004: this checkpoint can't be used: .*\nDelete that folder"):
        checkpoints.load(4, *parts())


def test_a_checkpoint_of_another_adapter_is_refused(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path, keep_last=1)
    checkpoints.save(*parts(), Progress(step=4))
    model, optimizer, scheduler = parts()
    model[2] = nn.Linear(4, 2)
    with pytest.raises(OutputError, match="other names or shapes than this model's adapter"):
        checkpoints.load(4, model, optimizer, scheduler)


def test_a_checkpoint_of_an_older_kind_is_refused(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path, keep_last=1)
    checkpoints.save(*parts(), Progress(step=4))
    state = json.loads((checkpoints.path(4) / STATE).read_text())
    state["progress"]["something_else"] = 1
    (checkpoints.path(4) / STATE).write_text(json.dumps(state))
    with pytest.raises(OutputError, match="something_else"):
        checkpoints.load(4, *parts())
