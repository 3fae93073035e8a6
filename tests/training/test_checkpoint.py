"""A checkpoint holds everything a run needs to go on as if it had never stopped."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import pytest
import torch
from torch import nn

from embedtune.config import TrainingConfig
from embedtune.errors import OutputError, StorageError
from embedtune.training.checkpoint import (
    CHECKSUMS,
    OPTIMIZER,
    STATE,
    WEIGHTS,
    Checkpoints,
    DamagedCheckpointError,
    Progress,
    Trained,
)
from embedtune.training.optim import build_optimizer, build_scheduler
from embedtune.training.plan import make_plan
from embedtune.training.weights import trainable_tensors


def parts(optimizer_name: Literal["adamw", "adamw8bit"] = "adamw", width: int = 4) -> Trained:
    """What one process trains with; dropout makes the random state matter."""
    torch.manual_seed(0)
    config = TrainingConfig(lr=0.1, max_steps=20, optimizer=optimizer_name)
    model: Any = nn.Sequential(nn.Linear(4, width).requires_grad_(False), nn.Dropout(0.5), nn.Linear(width, 1))
    plan = make_plan(config, 100)
    optimizer = build_optimizer(model.parameters(), config, plan)
    return Trained(model=model, optimizer=optimizer, scheduler=build_scheduler(optimizer, plan))


def step(parts: Trained, times: int = 1) -> None:
    for _ in range(times):
        parts.model(torch.ones(8, 4)).square().mean().backward()
        parts.optimizer.step()
        parts.scheduler.step()
        parts.optimizer.zero_grad()


def weights(model: nn.Module) -> list[torch.Tensor]:
    return [parameter.detach().clone() for parameter in model.parameters()]


def moments(optimizer: torch.optim.Optimizer) -> list[torch.Tensor]:
    state = optimizer.state_dict()["state"]
    return [state[index][key].clone() for index in sorted(state) for key in sorted(state[index])]


def everything(parts: Trained) -> dict[str, list[torch.Tensor]]:
    return {
        "weights": weights(parts.model),
        "moments": moments(parts.optimizer),
        "schedule": [torch.tensor(parts.scheduler.get_last_lr())],
        "learning rates": [torch.tensor(group["lr"]) for group in parts.optimizer.param_groups],
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
        highest_metric=2 / 3,
        highest_items=[0.1, 0.7],
        losses=[0.1, 1e-9],
        evaluations=[{"step": 3, "ndcg@10": 1 / 3}],
    )
    checkpoints.save(first, progress)
    saved = everything(first)
    step(first, 3)
    after = weights(first.model)

    torch.manual_seed(99)
    second = parts()
    with torch.no_grad():
        second.model.get_parameter("2.weight").fill_(7.0)
    assert checkpoints.load(5, second) == progress
    restored = everything(second)
    for name, tensors in saved.items():
        assert all(torch.equal(one, other) for one, other in zip(tensors, restored[name], strict=True)), name
    step(second, 3)
    assert all(torch.equal(one, other) for one, other in zip(weights(second.model), after, strict=True))


def test_a_mean_of_weights_is_what_counts_and_training_goes_on_from_its_own(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path, keep_last=1)
    first = parts()
    for _ in range(3):
        step(first)
        first.average.add()
    checkpoints.save(first, Progress(step=3))
    mean, own = dict(first.average.weights()), weights(first.model)
    mean = {name: weight.clone() for name, weight in mean.items()}
    step(first, 2)
    first.average.add()

    second = parts()
    checkpoints.load_weights(3, second.model)
    assert all(torch.equal(weight, mean[name]) for name, weight in trainable_tensors(second.model).items())
    checkpoints.load(3, second)
    assert all(torch.equal(one, other) for one, other in zip(weights(second.model), own, strict=True))
    assert not torch.equal(second.model.get_parameter("2.weight"), mean["2.weight"])
    step(second, 2)
    second.average.add()
    assert second.average.steps == first.average.steps == 4
    assert all(torch.equal(weight, first.average.weights()[name]) for name, weight in second.average.weights().items())


def test_eight_bit_moments_come_back_bit_for_bit(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path, keep_last=1)
    first = parts("adamw8bit", width=5_000)
    step(first, 5)
    assert torch.uint8 in {
        tensor.dtype
        for tensor in first.optimizer.state[first.model.get_parameter("2.weight")].values()
        if torch.is_tensor(tensor)
    }
    checkpoints.save(first, Progress(step=5))
    step(first, 3)

    second = parts("adamw8bit", width=5_000)
    checkpoints.load(5, second)
    step(second, 3)
    assert all(torch.equal(one, other) for one, other in zip(weights(second.model), weights(first.model), strict=True))


def test_a_run_without_an_evaluation_yet(tmp_path: Path) -> None:
    """The best metric so far is minus infinity."""
    checkpoints = Checkpoints(tmp_path, keep_last=1)
    checkpoints.save(parts(), Progress())
    assert checkpoints.load(0, parts()) == Progress()


def test_only_what_is_trained_is_saved(tmp_path: Path) -> None:
    from safetensors.torch import load_file

    checkpoints = Checkpoints(tmp_path, keep_last=1)
    checkpoints.save(parts(), Progress(step=1))
    assert set(load_file(checkpoints.path(1) / WEIGHTS)) == {"2.weight", "2.bias"}


@pytest.mark.parametrize(
    ("keep_last", "best", "kept"),
    [(1, 6, [6]), (1, 2, [2, 6]), (2, 2, [2, 5, 6]), (2, 5, [5, 6]), (9, 1, [1, 2, 3, 4, 5, 6])],
)
def test_the_last_few_and_the_best_are_kept(keep_last: int, best: int, kept: list[int], tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path, keep_last=keep_last)
    for number in range(1, 7):
        checkpoints.save(parts(), Progress(step=number, best_step=min(best, number)))
    assert checkpoints.steps() == kept
    assert sorted(path.name for path in tmp_path.iterdir()) == [f"step-{number:08d}" for number in kept]


def test_an_unfinished_checkpoint_does_not_count_and_is_replaced(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path, keep_last=2)
    (tmp_path / ".step-00000004.tmp").mkdir()
    (tmp_path / ".step-00000004.tmp" / WEIGHTS).write_text("half")
    assert checkpoints.steps() == []
    checkpoints.open()
    assert list(tmp_path.iterdir()) == []
    checkpoints.save(parts(), Progress(step=4))
    assert checkpoints.steps() == [4]
    checkpoints.load(4, parts())


def test_no_folder_yet(tmp_path: Path) -> None:
    assert Checkpoints(tmp_path / "missing", keep_last=1).steps() == []


def test_saving_a_step_again_replaces_it(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path, keep_last=1)
    checkpoints.save(parts(), Progress(step=4, pairs=1))
    checkpoints.save(parts(), Progress(step=4, pairs=2))
    assert checkpoints.load(4, parts()).pairs == 2


def flip(file: Path, place: int) -> None:
    """One bit of one byte, as a bad cable or memory does."""
    content = bytearray(file.read_bytes())
    content[place] ^= 1
    file.write_bytes(content)


def damage(file: Path, kind: str) -> None:
    if kind == "missing":
        file.unlink()
    elif kind == "cut":
        file.write_bytes(file.read_bytes()[:40])
    elif kind == "empty":
        file.write_bytes(b"")
    else:
        flip(file, {"flipped first": 0, "flipped middle": file.stat().st_size // 2}[kind])


DAMAGES = ["missing", "cut", "empty", "flipped first", "flipped middle"]


@pytest.mark.parametrize("kind", DAMAGES)
@pytest.mark.parametrize("name", [WEIGHTS, OPTIMIZER, STATE, CHECKSUMS])
def test_of_a_damaged_checkpoint_the_one_before_is_taken(name: str, kind: str, tmp_path: Path) -> None:
    checkpoints, warnings = Checkpoints(tmp_path, keep_last=2), list[str]()
    run = parts()
    checkpoints.save(run, Progress(step=0))
    step(run)
    checkpoints.save(run, Progress(step=1))
    before = everything(run)
    step(run)
    checkpoints.save(run, Progress(step=2))
    damage(checkpoints.path(2) / name, kind)
    with pytest.raises(DamagedCheckpointError, match=r"step-00000002: this checkpoint (is damaged|can't be read) \("):
        checkpoints.load(2, parts())
    resumed = parts()
    assert checkpoints.load_newest(resumed, warn=warnings.append) == Progress(step=1)
    for tensors, expected in zip(everything(resumed).values(), before.values(), strict=True):
        assert all(torch.equal(one, other) for one, other in zip(tensors, expected, strict=True))
    assert len(warnings) == 1
    assert "step-00000002" in warnings[0]
    assert warnings[0].endswith("going on from step 1, the one before")
    assert checkpoints.steps() == [0, 1]  # it does not count as one of the last, nor is it thrown away
    assert (tmp_path / "damaged-step-00000002").is_dir()


def test_a_flipped_byte_is_noticed_wherever_it_is(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path, keep_last=2)
    checkpoints.save(parts(), Progress(step=4))
    assert checkpoints.damage(4) is None
    for name in (WEIGHTS, STATE):
        file = checkpoints.path(4) / name
        for place in range(0, file.stat().st_size, 7):
            flip(file, place)
            assert checkpoints.damage(4) is not None, (name, place)
            flip(file, place)
    assert checkpoints.damage(4) is None


def test_if_all_are_damaged_the_run_does_not_silently_start_anew(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path, keep_last=2)
    for number in (1, 2):
        checkpoints.save(parts(), Progress(step=number))
        damage(checkpoints.path(number) / WEIGHTS, "cut")
    with pytest.raises(
        StorageError, match=r"step-00000002.*\n.*step-00000001.*\nNo checkpoint of this run can be used"
    ):
        checkpoints.load_newest(parts(), warn=lambda text: None)
    assert checkpoints.steps() == [1, 2]


def test_the_checksums_are_those_that_sha256sum_checks(tmp_path: Path) -> None:
    import hashlib

    checkpoints = Checkpoints(tmp_path, keep_last=2)
    checkpoints.save(parts(), Progress(step=4))
    for line in (checkpoints.path(4) / CHECKSUMS).read_text().splitlines():
        written, name = line.split("  ")
        assert hashlib.sha256((checkpoints.path(4) / name).read_bytes()).hexdigest() == written


def test_the_loss_scale_of_fp16_comes_back(tmp_path: Path) -> None:
    """On the CPU the scaler's numbers are set by hand; a GPU's are in test_cuda.py."""
    checkpoints = Checkpoints(tmp_path, keep_last=2)
    run = replace(parts(), scaler=torch.amp.GradScaler("cpu"))
    assert run.scaler is not None
    run.scaler.load_state_dict({**run.scaler.state_dict(), "scale": 512.0, "_growth_tracker": 7})
    checkpoints.save(run, Progress(step=4))
    resumed = replace(parts(), scaler=torch.amp.GradScaler("cpu"))
    checkpoints.load(4, resumed)
    assert resumed.scaler is not None
    state = resumed.scaler.state_dict()
    assert (state["scale"], state["_growth_tracker"]) == (512.0, 7)


def test_a_checkpoint_of_another_adapter_is_refused(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path, keep_last=1)
    checkpoints.save(parts(), Progress(step=4))
    other = parts()
    other.model.register_module("2", nn.Linear(4, 2))
    with pytest.raises(OutputError, match="other names or shapes than what this run trains"):
        checkpoints.load(4, other)


def test_a_checkpoint_of_an_older_kind_is_refused(tmp_path: Path) -> None:
    import hashlib

    checkpoints = Checkpoints(tmp_path, keep_last=1)
    checkpoints.save(parts(), Progress(step=4))
    file, sums = checkpoints.path(4) / STATE, checkpoints.path(4) / CHECKSUMS
    state, before = json.loads(file.read_text()), hashlib.sha256(file.read_bytes()).hexdigest()
    state["progress"]["something_else"] = 1
    file.write_text(json.dumps(state))
    sums.write_text(sums.read_text().replace(before, hashlib.sha256(file.read_bytes()).hexdigest()))
    with pytest.raises(OutputError, match="something_else"):
        checkpoints.load(4, parts())
