"""Who takes part, and what happens to the others when one can't or fails."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any, TypeVar, cast

import numpy as np
import pytest

from benchmarks import train
from benchmarks.__main__ import main
from benchmarks.actions import perform
from benchmarks.available import who_can_run, why_not
from benchmarks.jobs import GemmJob, TrainRunner
from benchmarks.processes import OutOfMemoryError, RunnerFailedError, Runners
from benchmarks.records import Agreement, GemmRates, TrainMeasurement
from benchmarks.train import TrainOptions
from benchmarks.turns import Participants
from embedtune.errors import ConfigError, RunError

Record = TypeVar("Record")


@dataclass
class FakeRunners:
    """Returns results without computing them."""

    answer: Callable[[str], Any]
    asked: list[str] = field(default_factory=list)

    def run(self, action: str, runner: str, record: type[Record]) -> Record:
        self.asked.append(runner)
        return cast(Record, self.answer(runner))


def test_one_that_fails_is_out_and_the_others_go_on(capsys: pytest.CaptureFixture[str]) -> None:
    def answer(runner: str) -> TrainMeasurement:
        if runner == "unsloth":
            raise RunnerFailedError("unsloth: time-train ended with exit code 1:\nTraceback\nValueError: no such thing")
        if runner == "st-bf16":
            raise OutOfMemoryError("st-bf16: time-train ended with exit code 3:\nCUDA ran full")
        return cast(TrainMeasurement, runner)

    participants = Participants(["embedtune", "unsloth", "st-bf16", "st-fp32"], skipped={})
    runners = FakeRunners(answer)
    for _ in range(2):
        found = dict(participants.take_turns(runners, "time-train", TrainMeasurement))
        assert list(found) == ["embedtune", "st-fp32"]
    assert runners.asked.count("unsloth") == runners.asked.count("st-bf16") == 1
    assert participants.failed == {
        "unsloth": "time-train: ValueError: no such thing",
        "st-bf16": "time-train: out of memory",
    }
    assert "st-bf16 failed at time-train: out of memory" in capsys.readouterr().out
    with pytest.raises(RunError, match="unsloth failed at time-train: ValueError: no such thing"):
        participants.complain()


def test_a_process_that_takes_too_long_has_failed(tmp_path: Path) -> None:
    runners = Runners(GemmJob(device="cpu", shape=(8, 8, 8)), tmp_path, time_limit=0.01)
    participants = Participants(["embedtune"], skipped={})
    with pytest.raises(RunError, match="every runner failed"):
        list(participants.take_turns(runners, "gemm", GemmRates))
    assert participants.failed == {"embedtune": "gemm: it took longer than 0.01 s"}


def test_a_run_ends_when_nobody_is_left() -> None:
    def answer(runner: str) -> TrainMeasurement:
        raise RunnerFailedError("it broke")

    participants = Participants(["embedtune"], skipped={})
    with pytest.raises(RunError, match="every runner failed"):
        list(participants.take_turns(FakeRunners(answer), "time-train", TrainMeasurement))


def test_only_those_who_disagree_are_not_compared(tmp_path: Path) -> None:
    np.save(tmp_path / "same.npy", np.eye(3, dtype=np.float32))

    def answer(runner: str) -> Agreement:
        loss = 2.0 if runner == "st-bf16" else 1.0
        return Agreement(runner=runner, precision="fp32", embeddings=str(tmp_path / "same.npy"), loss=loss)

    participants = Participants(["embedtune", "st-fp32", "st-bf16"], skipped={})
    participants.agree(FakeRunners(answer), "agree-train")
    assert participants.disagreeing == [frozenset(("embedtune", "st-bf16"))]
    assert participants.names == ["embedtune", "st-fp32", "st-bf16"]
    with pytest.raises(RunError, match=r"embedtune and st-bf16 don't compute the same .* loss: 1.000000 and 2.000000"):
        participants.complain()


@pytest.mark.parametrize("runner", ["st-flash", "unsloth", "unsloth-unpad", "unsloth-compile"])
def test_what_needs_cuda_says_so(runner: str) -> None:
    reason = why_not(runner, "cpu")
    assert reason is not None
    assert reason.endswith("needs CUDA, and the device is the CPU")


def test_what_is_not_installed_is_named() -> None:
    missing = {"st-flash": "flash_attn", "unsloth": "unsloth"}
    for runner, package in missing.items():
        if find_spec(package) is None:
            assert package in str(why_not(runner, "cuda"))
            assert str(why_not(runner, "cuda")).endswith("is not installed")


def test_a_runner_of_another_method_is_skipped() -> None:
    able, skipped = who_can_run(["embedtune-low", "embedtune", "embedtune"], [], "cpu")
    assert (able, skipped) == (["embedtune"], {"embedtune-low": "it is about --method qlora"})
    assert who_can_run(["embedtune-low"], [], "cpu", method="qlora") == (["embedtune-low"], {})
    with pytest.raises(ConfigError, match=r"none of them can run here\.\nst-flash: FlashAttention needs CUDA"):
        who_can_run(["st-flash"], [], "cpu")


def test_emulated_bf16_runs_only_when_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("benchmarks.available._multiplies_bf16", lambda: False)
    able, skipped = who_can_run([], ["embedtune", "st-fp32", "st-bf16"], "cpu")
    assert able == ["embedtune", "st-fp32"]
    assert "no fast bf16" in skipped["st-bf16"]
    assert who_can_run(["st-bf16"], [], "cpu") == (["st-bf16"], {})


def test_runners_import_nothing_before_unsloth() -> None:
    """It patches transformers when it is imported."""
    loaded = "import sys, benchmarks.runners; print({'torch', 'transformers', 'embedtune'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", loaded], cwd=Path(train.__file__).parents[1], capture_output=True)
    assert done.stdout.decode().strip() == "set()"


class RunnersHere(Runners):
    """They do it in this process; `test_methods.py` starts some, ten seconds each."""

    def _execute(self, command: list[str], errors: Path) -> tuple[int | None, str]:
        return perform(*command[command.index("benchmarks.runners") + 1 :]), ""


@pytest.mark.filterwarnings("ignore")
def test_a_benchmark_of_two_that_can_run_and_one_that_cannot(
    st_folder: Path,
    pairs_file: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(train, "Runners", RunnersHere)
    out = tmp_path / "results.json"
    runners: tuple[TrainRunner, ...] = ("embedtune-fp32", "st-fp32", "unsloth")
    options = TrainOptions(
        pairs=str(pairs_file),
        base=str(st_folder),
        batch_size=8,
        max_length=24,
        steps=1,
        rounds=1,
        rank=4,
        device="cpu",
        runners=runners,
        out=out,
    )
    train.benchmark(options)
    said = capsys.readouterr().out
    assert "embedtune-fp32 / st-fp32: " in said
    assert "unsloth skipped: " in said
    results = json.loads(out.read_text(encoding="utf-8"))
    assert list(results["skipped"]) == ["unsloth"]
    assert results["failed"] == {}
    assert results["summary"].keys() == results["rounds"][0].keys() == {"embedtune-fp32", "st-fp32"}
    assert results["ratios"]["embedtune-fp32"]["st-fp32"]["median"] > 0
    assert results["environment"].keys() >= {"torch", "transformers", "peft", "unsloth", "flash-attn", "triton"}
    assert results["job"]["method"] == "lora"


def test_the_entry_lists_and_dispatches(capsys: pytest.CaptureFixture[str]) -> None:
    main([])
    assert "quality-time" in capsys.readouterr().out
    for arguments, said in (
        (["trian"], "'trian' is none of train, "),
        (["train", "--steps", "0"], "--steps is 0"),
        (["train", "--runners", "embedtune-cached"], "Type:  --mini-batch 128"),
    ):
        with pytest.raises(SystemExit) as exit_:
            main(arguments)
        assert exit_.value.code == 2
        assert said in capsys.readouterr().err
