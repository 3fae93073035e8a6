"""Settings to TOML and back, and errors that name what would be right."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from embedtune.cli.options import parse_train
from embedtune.config import (
    METRICS,
    AdapterConfig,
    DataConfig,
    EvaluationConfig,
    LossConfig,
    ModelConfig,
    OutputConfig,
    TrainConfig,
    TrainingConfig,
)
from embedtune.config_file import from_dict, load_toml, to_toml
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
        memory="low",
        query_prompt="query: ",
        passage_prompt="",
        trust_remote_code=True,
    ),
    adapter=AdapterConfig(
        method="qlora",
        rank=8,
        alpha=16,
        dropout=0.1,
        rslora=True,
        init="loftq",
        target_modules=("all-linear", r".*\.word_embeddings"),
        exclude_modules=("0.attention.self.query",),
        layers_to_transform=(3, 1),
        bias="lora_only",
        modules_to_save=("LayerNorm",),
        merge_into="original",
    ),
    loss=LossConfig(
        scale=50.0,
        learn_scale=True,
        both_directions=True,
        matryoshka=(384, 96),
        matryoshka_weights=(1.0, 0.5),
        distill="kl",
        teacher="owner/reranker",
        distill_weight=0.5,
        distill_temperature=2.0,
        guide="self",
        guide_margin=0.1,
    ),
    training=TrainingConfig(
        lr=1e-4,
        optimizer="adamw8bit",
        batch_size=32,
        epochs=1.5,
        max_steps=100,
        accumulate=2,
        schedule="linear",
        warmup_fraction=0.0,
        weight_decay=0.0,
        gradient_checkpointing=True,
        max_grad_norm=0.0,
        eval_steps=10,
        metric="recall@100",
        patience=3,
        keep_last=3,
        dev_corpus=10,
    ),
    evaluation=EvaluationConfig(
        against=("one/model", "another/model"), forgetting=("sts.csv", "faq.jsonl"), blend="auto"
    ),
    output=OutputConfig(out=Path("runs/a b"), seed=7, resume=True),
)


FULL = TrainConfig(adapter=AdapterConfig(method="full", last_layers=2))
GOING_ON = TrainConfig(adapter=AdapterConfig(method="qlora", start_adapter="run/adapter", merge_into="original"))


@pytest.mark.parametrize("config", [TrainConfig(), EVERYTHING, FULL, GOING_ON])
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
        (
            "[training]\nlearning_rate = 1",
            r"\[training\]: unknown key 'learning_rate'; the keys are .*\blr\b",
        ),
        ("[training]\nlr = 'high'", r"\[training\] lr: got 'high', expected float"),
        ("[training]\nbatch_size = 2.5", r"\[training\] batch_size: got 2.5, expected int"),
        ("[loss]\nboth_directions = 1", r"both_directions: got 1, expected bool"),
        ("[training]\nlr = true", r"lr: got True, expected float"),
        ("[training]\nbatch_size = true", r"batch_size: got True, expected int"),
        ("[output]\nout = 3", r"\[output\] out: got 3, expected Path"),
        ("[data]\nnegative_columns = 'n'", r"negative_columns: got 'n', expected"),
        ("[training]\nschedule = 'cosin'", r"--schedule is cosin, expected one of auto, cosine, linear, constant"),
        ("[model]\nprecision = 'fp8'", r"--precision is fp8, expected one of auto, fp32, bf16, fp16"),
        ("[model]\ndevice = 'gpu'", r"--device is gpu, expected one of auto, cpu, cuda"),
        ("[model]\nmemory = 'high'", r"--memory is high, expected one of auto, low"),
        ("[adapter]\nmethod = 'loha'", r"--method is loha, expected one of lora, qlora, full"),
        ("[adapter]\ninit = 'eva'", r"--init is eva, expected one of default, gaussian, pissa, loftq"),
        ("[adapter]\nbias = 'some'", r"--bias is some, expected one of none, all, lora_only"),
        ("[adapter]\nrank = 8.0", r"\[adapter\] rank: got 8.0, expected int"),
        ("[adapter]\ndora = 1", r"\[adapter\] dora: got 1, expected bool"),
        ("[adapter]\ntarget_modules = 'query'", r"\[adapter\] target_modules: got 'query', expected"),
        ("[adapter]\ntarget_modules = [1]", r"\[adapter\] target_modules: got \[1\], expected"),
        ("[adapter]\ntarget_modules = ['query', 1]", r"\[adapter\] target_modules: got \['query', 1\], expected"),
        ("[adapter]\nexclude_modules = [['query']]", r"\[adapter\] exclude_modules: got \[\['query'\]\], expected"),
        ("[adapter]\nmodules_to_save = [true]", r"\[adapter\] modules_to_save: got \[True\], expected"),
        ("[adapter]\nlayers_to_transform = 1", r"\[adapter\] layers_to_transform: got 1, expected"),
        ("[adapter]\nlayers_to_transform = ['1']", r"\[adapter\] layers_to_transform: got \['1'\], expected"),
        ("[adapter]\nlayers_to_transform = [1.0]", r"\[adapter\] layers_to_transform: got \[1.0\], expected"),
        ("[adapter]\nlayers_to_transform = [true]", r"\[adapter\] layers_to_transform: got \[True\], expected"),
        ("[adapter]\nlast_layers = '1'", r"\[adapter\] last_layers: got '1', expected int"),
        ("[adapter]\ntarget_modules = []", r"--target-modules is empty, expected all-linear or names of modules"),
        ("[adapter]\nmethod = 'full'\nrank = 8", r"--method full .* --rank would have no effect"),
        ("[model]\nmemory = 'low'", r"--memory low is about 4-bit weights, and --method lora has none"),
        ("[evaluation]\nblend = 1.5", r"--blend is 1.5, expected a number from 0 to 1, or auto"),
        ("[evaluation]\nblend = 'half'", r"--blend is half, expected a number from 0 to 1, or auto"),
        ("[evaluation]\nblend = true", r"--blend is True, expected a number from 0 to 1, or auto"),
        ("[evaluation]\nforgetting = 'sts.csv'", r"\[evaluation\] forgetting: got 'sts.csv', expected"),
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
        (AdapterConfig, "dropout", -0.1),
        (AdapterConfig, "last_layers", 0),
        (TrainingConfig, "lr", 0.0),
        (TrainingConfig, "lr", float("nan")),
        (TrainingConfig, "batch_size", 1),
        (TrainingConfig, "epochs", 0.0),
        (TrainingConfig, "max_steps", 0),
        (TrainingConfig, "eval_steps", 0),
        (TrainingConfig, "patience", 0),
        (TrainingConfig, "trainings", 0),
        (TrainingConfig, "accumulate", 0),
        (TrainingConfig, "warmup_fraction", 1.0),
        (TrainingConfig, "weight_decay", -1.0),
        (TrainingConfig, "max_grad_norm", -1.0),
        (LossConfig, "scale", 0.0),
        (LossConfig, "distill_weight", 0.0),
        (LossConfig, "distill_temperature", 0.0),
        (LossConfig, "guide_margin", 3.0),
        (TrainingConfig, "keep_last", 1),
        (TrainingConfig, "checkpoint_minutes", -1.0),
        (TrainingConfig, "dev_corpus", 0),
    ],
)
def test_values_out_of_range_are_named_as_typed(cls: Any, name: str, value: float) -> None:
    with pytest.raises(ConfigError, match=rf"--{name.replace('_', '-')} is {value}, expected"):
        cls(**{name: value})


ADAPTER_OPTIONS: dict[str, Any] = {
    "rank": 8,
    "alpha": 16.0,
    "dropout": 0.1,
    "rslora": True,
    "dora": True,
    "init": "gaussian",
    "target_modules": ("query",),
    "exclude_modules": ("query",),
    "bias": "all",
    "modules_to_save": ("LayerNorm",),
}
LAYER_OPTIONS: dict[str, Any] = {"layers_to_transform": (0,), "last_layers": 1}


@pytest.mark.parametrize(
    ("given", "others", "reason"),
    [
        ({"method": "full"}, {**ADAPTER_OPTIONS, "start_adapter": "run/adapter"}, "--method full trains the weights "),
        ({"start_adapter": "run/adapter"}, {**ADAPTER_OPTIONS, **LAYER_OPTIONS}, "--start-adapter goes on with an "),
        ({"method": "lora"}, {"merge_into": "original"}, "--method lora has no 4-bit weights"),
        ({"method": "full"}, {"merge_into": "original"}, "--method full has no 4-bit weights"),
        ({"last_layers": 1}, {"layers_to_transform": (0,)}, "--last-layers says which layers"),
    ],
)
def test_options_that_would_have_no_effect(given: dict[str, Any], others: dict[str, Any], reason: str) -> None:
    AdapterConfig(**given)
    for name, value in others.items():
        expected = rf"{reason}.*; --{name.replace('_', '-')} would have no effect\. Leave it out\."
        with pytest.raises(ConfigError, match=expected):
            AdapterConfig(**given, **{name: value})


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"dora": True, "init": "pissa"}, r"--init pissa and --dora both redefine .*\nLeave one of them out"),
        ({"dora": True, "init": "loftq", "method": "qlora"}, r"--init loftq and --dora both redefine .*\nLeave one"),
        ({"init": "loftq"}, r"--init loftq .* --method lora has none\.\nType:  --method qlora --init loftq"),
        ({"init": "pissa", "method": "qlora"}, r"--init pissa .* --method qlora holds in 4 bits\.\nType:  --method "),
        ({"layers_to_transform": (0, -1)}, r"--layers-to-transform is \(0, -1\), expected 0 or more"),
        ({"target_modules": ()}, r"--target-modules is empty, expected all-linear or names"),
    ],
)
def test_adapter_options_that_contradict_each_other(options: dict[str, Any], expected: str) -> None:
    with pytest.raises(ConfigError, match=expected):
        AdapterConfig(**options)


@pytest.mark.parametrize("method", ["lora", "full"])
def test_low_memory_is_for_four_bits(method: Any) -> None:
    expected = (
        rf"--memory low .* --method {method} has none\.\nType:  --method qlora --memory low, or .*--gradient-chec"
    )
    with pytest.raises(ConfigError, match=expected):
        TrainConfig(model=ModelConfig(memory="low"), adapter=AdapterConfig(method=method))
    TrainConfig(model=ModelConfig(memory="low"), adapter=AdapterConfig(method="qlora"))


def test_every_metric_can_choose_the_checkpoint() -> None:
    assert [TrainingConfig(metric=metric).metric for metric in METRICS] == list(METRICS)


def test_settings_do_not_change_under_way() -> None:
    with pytest.raises(AttributeError):
        TrainingConfig().lr = 1.0  # type: ignore[misc]


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({"learn_scale": True, "scale": 200.0}, "--scale is 200.0, expected 1 to 100 with --learn-scale"),
        ({"teacher": "owner/name"}, r"--teacher owner/name says nothing without --distill.\nType:  --distill kl"),
        ({"distill_weight": 0.5}, "says nothing without --distill"),
        ({"distill": "margin-mse", "distill_temperature": 2.0}, "has no meaning in --distill margin-mse"),
        ({"guide_margin": 0.1}, "--guide-margin 0.1 says nothing without --guide"),
        ({"matryoshka": (384, 384)}, "--matryoshka is .384, 384., expected different sizes"),
        ({"matryoshka": (384, 0)}, "expected different sizes of 1 or more"),
        ({"matryoshka_weights": (1.0,)}, "says nothing without --matryoshka"),
        ({"matryoshka": (8, 4), "matryoshka_weights": (1.0,)}, "expected one for each of the 2 sizes"),
        ({"matryoshka": (8, 4), "matryoshka_weights": (1.0, 0.0)}, "expected numbers above 0"),
        ({"distill": "mse"}, "--distill is mse, expected one of none, kl, margin-mse"),
    ],
)
def test_losses_that_make_no_sense_are_refused(given: dict[str, Any], expected: str) -> None:
    with pytest.raises(ConfigError, match=expected):
        LossConfig(**given)


@pytest.mark.parametrize("typed", [["384,192,96"], ["384", "192", "96"], ["384,192", "96"]])
def test_sizes_with_commas_or_spaces(typed: list[str]) -> None:
    assert parse_train(["pairs.jsonl", "--matryoshka", *typed, "--seed", "3"]).loss.matryoshka == (384, 192, 96)
