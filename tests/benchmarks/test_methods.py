"""Every method trains the tiny model; a table is given only if saving memory changes no loss, with what ran out of it.

The cells run in this process, but for one test that gives each its own, as `python -m benchmarks.methods` does.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TypeVar, cast

import pytest
import torch

from benchmarks import methods, output
from benchmarks.agreement import DisagreementError, check_losses
from benchmarks.batches import build_batches, write_batches
from benchmarks.cells import time_method
from benchmarks.jobs import METHODS, MethodJob, cells_of
from benchmarks.methods import MethodsOptions
from benchmarks.processes import OutOfMemoryError
from benchmarks.records import MethodMeasurement
from benchmarks.sizes import SIZES, write_checkpoint
from benchmarks.summary import summarize_methods
from embedtune.errors import ConfigError

CELLS = [cell for method in METHODS for cell in cells_of(method)]
MEASURED = MethodMeasurement(
    cell="lora",
    precision="fp32",
    step_seconds=[1.0, 3.0],
    batch_size=8,
    tokens=300,
    trainable_parameters=10,
    process_bytes=100,
    loaded_bytes=150,
    load_peak_bytes=180,
    peak_bytes=400,
    losses=[2.0, 1.9, 1.8],
    notes=[],
)

Record = TypeVar("Record")


@dataclass
class FakeRunner:
    """Returns measurements without measuring; memory runs out in some cells, others have another loss."""

    too_large: tuple[str, ...] = ()
    losses: dict[str, list[float]] = field(default_factory=dict)
    asked: list[str] = field(default_factory=list)

    def run(self, action: str, runner: str, record: type[Record]) -> Record:
        assert (action, record) == ("time-method", MethodMeasurement)
        self.asked.append(runner)
        if runner in self.too_large:
            raise OutOfMemoryError(f"{runner}: out of memory")
        measured = replace(MEASURED, cell=runner, losses=self.losses.get(runner, MEASURED.losses))
        return cast(Record, measured)


@pytest.fixture
def tiny(monkeypatch: pytest.MonkeyPatch, bert_config: dict[str, Any]) -> str:
    from transformers import BertConfig

    monkeypatch.setitem(SIZES, "tiny", lambda: BertConfig(**bert_config))
    return "tiny"


@pytest.fixture
def job(tiny: str, bare_folder: Path, pairs_file: Path, tmp_path: Path) -> MethodJob:
    batches = tmp_path / "batches.jsonl"
    write_batches(build_batches(str(pairs_file), batch_size=8, count=3, seed=0), batches)
    write_checkpoint(tiny, tmp_path / "checkpoint", base=str(bare_folder), seed=0)
    return MethodJob(
        base=str(tmp_path / "checkpoint"),
        batches=str(batches),
        batch_size=8,
        max_length=24,
        device="cpu",
        precision="fp32",
        optimizer="adamw",
        warmup=1,
        seed=0,
    )


def test_each_method_trains_alike_however_it_saves_memory(job: MethodJob) -> None:
    pytest.importorskip("bitsandbytes")
    measured = {cell: time_method(cell, job) for cell in CELLS}
    assert check_losses("tiny", {cell: m.losses for cell, m in measured.items()}, "fp32") == []
    assert all(len(m.step_seconds) == 2 and len(m.losses) == 3 for m in measured.values())
    assert measured["full"].trainable_parameters > measured["lora"].trainable_parameters > 0
    assert measured["qlora"].trainable_parameters == measured["lora"].trainable_parameters
    assert measured["qlora"].losses[0] != measured["lora"].losses[0]
    assert "a dequantised copy" in measured["qlora"].notes[-1]
    assert "as --memory low asks" in measured["qlora-low"].notes[-1]


def test_half_precision_trains_alike_too(job: MethodJob) -> None:
    job = replace(job, precision="bf16")
    measured = {cell: time_method(cell, job) for cell in ("lora", "lora+gc", "full", "full+gc")}
    assert check_losses("tiny", {cell: m.losses for cell, m in measured.items()}, "bf16") == []
    assert {m.precision for m in measured.values()} == {"bf16"}


def test_a_table_is_made(
    tiny: str, bare_folder: Path, pairs_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "methods.json"
    options = MethodsOptions(
        pairs=str(pairs_file),
        base=str(bare_folder),
        sizes=(tiny,),
        methods=("lora",),
        batch_size=8,
        max_length=24,
        steps=1,
        rounds=1,
        device="cpu",
        precision="fp32",
        json=out,
    )
    methods.benchmark(options)
    assert "tiny │ lora   │ yes" in capsys.readouterr().out
    results = json.loads(out.read_text(encoding="utf-8"))
    one, other = (results["summary"]["tiny"][cell] for cell in cells_of("lora"))
    assert one["first_loss"] == pytest.approx(other["first_loss"], rel=1e-5)
    assert one["peak_bytes"] > 0
    assert one["loaded_bytes"] > 0
    assert results["environment"].keys() >= {"torch", "bitsandbytes", "cpu", "memory_bytes", "precision"}
    assert results["job"]["batch_size"] == 8
    assert results["parameters"]["tiny"] > one["trainable_parameters"]


@pytest.mark.parametrize(
    ("cell", "said"),
    [
        ("lora+gc", r"22m: lora and lora\+gc don't compute the same.*\n.*loss: 2.000000 and 2.010000"),
        ("qlora-low", "22m: qlora and qlora-low don't"),
        ("full+gc", r"22m: full and full\+gc don't"),
    ],
)
def test_another_loss_ends_the_run(cell: str, said: str) -> None:
    runner = FakeRunner(losses={cell: [2.01, 1.9, 1.8]})
    with pytest.raises(DisagreementError, match=said):
        methods.measure({"22m": runner}, CELLS, rounds=2, precision="fp32")
    assert len(runner.asked) == len(CELLS)
    assert methods.measure({"22m": runner}, CELLS, rounds=1, precision="bf16")


def test_another_loss_later_is_pointed_out(capsys: pytest.CaptureFixture[str]) -> None:
    runner = FakeRunner(losses={"lora+gc": [2.0, 1.5, 1.8], "full": [3.0, 1.0, 1.0], "full+gc": [3.0, 1.0, 1.0]})
    methods.measure({"22m": runner}, CELLS, rounds=1, precision="fp32")
    said = capsys.readouterr().out
    assert "look at this: 22m: lora and lora+gc: the first losses agree, later ones differ by up to 0.21" in said
    assert said.count("look at this") == 1


def test_out_of_memory_is_a_cell(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    runner = FakeRunner(too_large=("full",))
    rounds = methods.measure({"560m": runner}, CELLS, rounds=2, precision="fp32")
    assert runner.asked.count("full") == 1
    assert runner.asked.count("full+gc") == 2
    summaries = summarize_methods(rounds)
    assert summaries["560m"]["full"] is None
    other = summaries["560m"]["full+gc"]
    assert other is not None
    assert (other.loaded_bytes, other.load_peak_bytes, other.peak_bytes) == (50, 80, 300)
    assert (other.step_seconds, other.pairs_per_second, other.tokens_per_step) == (2, 4, 100)

    output.show_methods(summaries)
    rows = [line.split("│") for line in capsys.readouterr().out.splitlines() if "560m │" in line]
    assert [("out of memory" in "".join(row)) for row in rows] == [cell == "full" for cell in CELLS]
    output.write_results(tmp_path / "out.json", {"summary": summaries})
    assert json.loads((tmp_path / "out.json").read_text(encoding="utf-8"))["summary"]["560m"]["full"] is None


@pytest.mark.parametrize(
    ("size", "parameters"), [("22m", 22_713_216), ("33m", 33_360_000), ("110m", 109_482_240), ("560m", 559_890_432)]
)
def test_sizes_are_the_real_ones(size: str, parameters: int) -> None:
    from transformers import AutoModel

    with torch.device("meta"):
        model = AutoModel.from_config(SIZES[size]())  # type: ignore[no-untyped-call]
    assert model.num_parameters() == parameters


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"sizes": ("22m,7b",)}, "--sizes has 7b, expected some of 22m, 33m, 110m, 560m"),
        ({"methods": ("dora",)}, "--methods has dora, expected some of lora, qlora, qlora-low, full"),
        ({"sizes": ()}, "--sizes has nothing"),
        ({"steps": 0}, "--steps is 0"),
    ],
)
def test_options_that_make_no_sense_are_refused(wrong: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        MethodsOptions(pairs="pairs.jsonl", **wrong)


def test_a_tokenizer_with_too_many_ids_is_refused(
    monkeypatch: pytest.MonkeyPatch, bert_config: dict[str, Any], bare_folder: Path, tmp_path: Path
) -> None:
    from transformers import BertConfig

    monkeypatch.setitem(SIZES, "tiny", lambda: BertConfig(**{**bert_config, "vocab_size": 20}))
    with pytest.raises(ConfigError, match="and size tiny has 20 embeddings"):
        write_checkpoint("tiny", tmp_path, base=str(bare_folder), seed=0)
