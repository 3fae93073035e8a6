"""Settings to TOML and back, and errors that name what would be right."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from embedtune.config import (
    METRICS,
    AdapterConfig,
    DataConfig,
    ModelConfig,
    OutputConfig,
    TrainConfig,
    TrainingConfig,
    from_dict,
    load_toml,
    to_toml,
)
from embedtune.errors import ConfigError

EVERYTHING = TrainConfig(
    data=DataConfig(
        train='pairs "1".jsonl',
        test="test.csv",
        dev="ü/dev.tsv",
        corpus="corpus.parquet",
        anchor_column="q",
        positive_column="a",
        negative_columns=("n1", "n2"),
        test_fraction=0.25,
        dev_fraction=0.01,
        max_dev_pairs=7,
    ),
    model=ModelConfig(
        base="C:\\models\\e5",
        revision="main",
        max_length=128,
        precision="bf16",
        device="cpu",
        trust_remote_code=True,
    ),
    adapter=AdapterConfig(rank=8, alpha=16, dropout=0.1),
    training=TrainingConfig(
        lr=1e-4,
        batch_size=32,
        epochs=1.5,
        max_steps=100,
        accumulate=2,
        schedule="linear",
        warmup_fraction=0.0,
        weight_decay=0.0,
        max_grad_norm=0.0,
        scale=50.0,
        both_directions=True,
        eval_steps=10,
        metric="recall@100",
        patience=3,
        keep_last=1,
        dev_corpus=10,
    ),
    output=OutputConfig(out=Path("runs/a b"), seed=7, resume=True),
)


@pytest.mark.parametrize("config", [TrainConfig(), EVERYTHING])
def test_toml_is_read_back_as_it_was(config: TrainConfig, tmp_path: Path) -> None:
    path = tmp_path / "config.toml"
    path.write_text(to_toml(config), encoding="utf-8")
    assert load_toml(path) == config


def test_what_is_not_given_keeps_its_default() -> None:
    config = from_dict({"training": {"lr": 1}}, source="x")
    assert config == TrainConfig(training=TrainingConfig(lr=1.0))
    assert isinstance(config.training.lr, float)
    assert from_dict({}, source="x") == TrainConfig()


@pytest.mark.parametrize(
    ("document", "expected"),
    [
        ("[trainig]\nlr = 1", r"unknown section \[trainig\]; the sections are \[data\], \[model\], \[adapter\]"),
        ("lr = 1", r"unknown section \[lr\]; the sections are \[data\]"),
        ("training = 1", r"'training' must be a section, \[training\], not 1"),
        ("[training]\nlearning_rate = 1", r"\[training\]: unknown key 'learning_rate'; the keys are .*\blr\b.*scale"),
        ("[training]\nlr = 'high'", r"\[training\] lr: got 'high', expected float"),
        ("[training]\nbatch_size = 2.5", r"\[training\] batch_size: got 2.5, expected int"),
        ("[training]\nboth_directions = 1", r"both_directions: got 1, expected bool"),
        ("[training]\nlr = true", r"lr: got True, expected float"),
        ("[training]\nbatch_size = true", r"batch_size: got True, expected int"),
        ("[output]\nout = 3", r"\[output\] out: got 3, expected Path"),
        ("[data]\nnegative_columns = 'n'", r"negative_columns: got 'n', expected"),
        ("[training]\nschedule = 'cosin'", r"--schedule is cosin, expected one of cosine, linear, constant"),
        ("[model]\nprecision = 'fp8'", r"--precision is fp8, expected one of auto, fp32, bf16, fp16"),
        ("[model]\ndevice = 'gpu'", r"--device is gpu, expected one of auto, cpu, cuda"),
        ("[adapter]\nmethod = 'full'", r"--method is full, expected one of lora"),
        ("[training]\nmetric = 'ndcg@7'", r"--metric is ndcg@7, expected one of accuracy@1"),
        ("[training\n", "not a readable TOML file"),
    ],
)
def test_mistakes_in_a_file(document: str, expected: str, tmp_path: Path) -> None:
    path = tmp_path / "config.toml"
    path.write_text(document)
    with pytest.raises(ConfigError, match=expected):
        load_toml(path)


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"missing\.toml: no such file"):
        load_toml(tmp_path / "missing.toml")
    with pytest.raises(ConfigError, match="not a readable TOML file"):
        load_toml(tmp_path)
    (tmp_path / "latin.toml").write_bytes("# größe".encode("latin-1"))
    with pytest.raises(ConfigError, match="not a readable TOML file"):
        load_toml(tmp_path / "latin.toml")


@pytest.mark.parametrize(
    ("cls", "name", "value"),
    [
        (DataConfig, "test_fraction", 0.0),
        (DataConfig, "test_fraction", 1.0),
        (DataConfig, "dev_fraction", -0.5),
        (DataConfig, "max_dev_pairs", 1),
        (ModelConfig, "max_length", 7),
        (AdapterConfig, "rank", 0),
        (AdapterConfig, "alpha", 0.0),
        (AdapterConfig, "dropout", 1.0),
        (TrainingConfig, "lr", 0.0),
        (TrainingConfig, "lr", float("nan")),
        (TrainingConfig, "batch_size", 1),
        (TrainingConfig, "epochs", 0.0),
        (TrainingConfig, "max_steps", 0),
        (TrainingConfig, "eval_steps", 0),
        (TrainingConfig, "patience", 0),
        (TrainingConfig, "accumulate", 0),
        (TrainingConfig, "warmup_fraction", 1.0),
        (TrainingConfig, "weight_decay", -1.0),
        (TrainingConfig, "max_grad_norm", -1.0),
        (TrainingConfig, "scale", 0.0),
        (TrainingConfig, "keep_last", 0),
        (TrainingConfig, "dev_corpus", 0),
    ],
)
def test_values_out_of_range_are_named_as_typed(cls: Any, name: str, value: float) -> None:
    with pytest.raises(ConfigError, match=rf"--{name.replace('_', '-')} is {value}, expected"):
        cls(**{name: value})


def test_every_metric_can_choose_the_checkpoint() -> None:
    assert [TrainingConfig(metric=metric).metric for metric in METRICS] == list(METRICS)


def test_settings_do_not_change_under_way() -> None:
    with pytest.raises(AttributeError):
        TrainingConfig().lr = 1.0  # type: ignore[misc]
