"""Which modules get an adapter or are trained in full, and what is said of names that fit nothing."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft.tuners.lora import LoraLayer
from transformers import AlbertConfig, AutoModel, BertConfig, PreTrainedModel, Qwen3Config

from embedtune.config import AdapterConfig
from embedtune.errors import ConfigError
from embedtune.models.adapters import attach_adapter, check_trainable, make_trainable
from embedtune.models.encoder import Encoder
from embedtune.models.targets import adapter_targets, saved_modules, trained_layers

LINEARS = (
    "attention.self.query",
    "attention.self.key",
    "attention.self.value",
    "attention.output.dense",
    "intermediate.dense",
    "output.dense",
)
NORMS = ("attention.output.LayerNorm", "output.LayerNorm")
EMBEDDINGS = ("word_embeddings", "position_embeddings", "token_type_embeddings")


@pytest.fixture(scope="module")
def make_backbone(bert_config: dict[str, Any]) -> Callable[..., PreTrainedModel]:
    def make(kind: type[Any] = BertConfig, **options: Any) -> PreTrainedModel:
        model = AutoModel.from_config(kind(**{**bert_config, **options}))  # type: ignore[no-untyped-call]
        assert isinstance(model, PreTrainedModel)
        return model

    return make


@pytest.fixture(scope="module")
def bert(make_backbone: Callable[..., PreTrainedModel]) -> PreTrainedModel:
    return make_backbone()


@pytest.fixture(scope="module")
def encoder(st_folder: Path, load: Callable[..., Encoder]) -> Encoder:
    """To be left as it is."""
    return load(st_folder)


def in_layers(*parts: str, layers: tuple[int, ...] = (0, 1)) -> list[str]:
    return [f"encoder.layer.{number}.{part}" for number in layers for part in parts]


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, in_layers(*LINEARS)),
        ({"target_modules": ("all-linear",)}, in_layers(*LINEARS)),
        ({"target_modules": ("query",)}, in_layers("attention.self.query")),
        ({"target_modules": ("value", "query")}, in_layers("attention.self.query", "attention.self.value")),
        ({"target_modules": ("attention.output.dense",)}, in_layers("attention.output.dense")),
        ({"target_modules": ("output.dense",)}, in_layers("attention.output.dense", "output.dense")),
        ({"target_modules": ("1.attention.self.key",)}, ["encoder.layer.1.attention.self.key"]),
        ({"target_modules": ("encoder.layer.0.output.dense",)}, ["encoder.layer.0.output.dense"]),
        (
            {"target_modules": (r".*\.1\..*(query|key)",)},
            in_layers("attention.self.query", "attention.self.key", layers=(1,)),
        ),
        ({"target_modules": (r"encoder\.layer\.\d\.output\.\w+",)}, in_layers("output.dense")),
        ({"target_modules": ("dense",)}, in_layers("attention.output.dense", "intermediate.dense", "output.dense")),
        ({"target_modules": ("word_embeddings",)}, ["embeddings.word_embeddings"]),
        (
            {"target_modules": ("query", "word_embeddings")},
            ["embeddings.word_embeddings", *in_layers("attention.self.query")],
        ),
        ({"exclude_modules": ("dense",)}, in_layers(*LINEARS[:3])),
        ({"exclude_modules": (r".*\.0\..*", "1.output.dense")}, in_layers(*LINEARS[:-1], layers=(1,))),
        # What one name excludes may be excluded by another one as well, in any order.
        ({"exclude_modules": ("dense", "output.dense")}, in_layers(*LINEARS[:3])),
        ({"exclude_modules": ("output.dense", "dense")}, in_layers(*LINEARS[:3])),
        ({"layers_to_transform": (1,)}, in_layers(*LINEARS, layers=(1,))),
        ({"layers_to_transform": (1, 0), "target_modules": ("key",)}, in_layers("attention.self.key")),
        ({"last_layers": 1}, in_layers(*LINEARS, layers=(1,))),
        ({"last_layers": 2}, in_layers(*LINEARS)),
        ({"last_layers": 1, "exclude_modules": ("dense",)}, in_layers(*LINEARS[:3], layers=(1,))),
    ],
)
def test_modules_that_get_an_adapter(options: dict[str, Any], expected: list[str], bert: PreTrainedModel) -> None:
    assert adapter_targets(bert, AdapterConfig(**options)) == expected


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, []),
        ({"modules_to_save": ("LayerNorm",)}, ["embeddings.LayerNorm", *in_layers(*NORMS)]),
        ({"modules_to_save": ("1.output.LayerNorm",)}, ["encoder.layer.1.output.LayerNorm"]),
        ({"modules_to_save": ("embeddings",)}, [f"embeddings.{part}" for part in (*EMBEDDINGS, "LayerNorm")]),
        ({"modules_to_save": (".*_embeddings",)}, [f"embeddings.{part}" for part in EMBEDDINGS]),
        ({"modules_to_save": ("key",), "exclude_modules": ("key",)}, in_layers("attention.self.key")),
        ({"modules_to_save": ("LayerNorm",), "last_layers": 1}, in_layers(*NORMS, layers=(1,))),
        ({"modules_to_save": ("LayerNorm",), "layers_to_transform": (0,)}, in_layers(*NORMS, layers=(0,))),
    ],
)
def test_modules_that_are_trained_in_full(options: dict[str, Any], expected: list[str], bert: PreTrainedModel) -> None:
    config = AdapterConfig(**options)
    assert saved_modules(bert, config, adapter_targets(bert, config)) == expected


@pytest.mark.parametrize(
    "options",
    [
        {"exclude_modules": ("0.attention.self.query",)},
        {"target_modules": (r".*\.[023]\..*", "word_embeddings"), "modules_to_save": ("1.output.LayerNorm",)},
        {"layers_to_transform": (1, 3), "modules_to_save": ("LayerNorm",)},
    ],
)
def test_peft_puts_the_adapter_on_just_these(
    options: dict[str, Any],
    make_checkpoint: Callable[..., Path],
    bert_config: dict[str, Any],
    load: Callable[..., Encoder],
) -> None:
    """It shortens long lists of names, and matches names by their ends."""
    encoder = load(make_checkpoint(BertConfig(**{**bert_config, "num_hidden_layers": 4})))
    config = AdapterConfig(**options)
    targets = adapter_targets(encoder.backbone, config)
    saved = saved_modules(encoder.backbone, config, targets)
    attach_adapter(encoder, config)
    layers = [name for name, module in encoder.backbone.named_modules() if isinstance(module, LoraLayer)]
    assert layers == targets
    trained = {name for name, parameter in encoder.backbone.named_parameters() if parameter.requires_grad}
    copies = {re.sub(r"\.modules_to_save\.default\.\w+$", "", name) for name in trained if "lora_" not in name}
    assert copies == set(saved)


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (
            {"target_modules": ("qeury",)},
            r"--target-modules: 'qeury' is no module of the model\.\n"
            r"Expected all-linear, dense, key, position_embeddings, query, token_type_embeddings, value, "
            r"word_embeddings; a longer end of a name, such as 0\.attention\.self\.query; or a regular expression",
        ),
        (
            {"target_modules": ("query", "uery")},
            r"--target-modules: 'uery' is no module of the model\.\nExpected all-l",
        ),
        # Neither a module that can't have an adapter nor the pooler, which has no part in the embeddings.
        (
            {"target_modules": ("LayerNorm",)},
            r"--target-modules: 'LayerNorm' is no module of the model\.\nExpected all",
        ),
        ({"target_modules": ("pooler.dense",)}, r"--target-modules: 'pooler\.dense' is no module of the model\.\nExp"),
        # No regular expression, and so a name.
        (
            {"target_modules": ("*.query",)},
            r"--target-modules: '\*\.query' is no module of the model\.\nExpected .*query",
        ),
        ({"target_modules": ("query(",)}, r"--target-modules: 'query\(' is no module of the model\.\nExpected .*query"),
        (
            {"target_modules": ("query", "word_embeddings"), "last_layers": 1},
            r"--target-modules: 'word_embeddings' is no module of the layers that are trained\.\n"
            r"Expected all-linear, dense, key, query, value;",
        ),
        (
            {"target_modules": ("0.attention.self.query", "value"), "layers_to_transform": (1,)},
            r"--target-modules: '0\.attention\.self\.query' is no module of the layers that are trained\.\nExp",
        ),
        (
            {"exclude_modules": ("quer",)},
            r"--exclude-modules: 'quer' is none of the modules that get an adapter\.\nExpected dense, key, query,",
        ),
        (
            {"target_modules": ("query",), "exclude_modules": ("dense",)},
            r"--exclude-modules: 'dense' is none of the modules that get an adapter\.\nExpected query;",
        ),
        (
            {"target_modules": ("query", "key"), "exclude_modules": (".*",)},
            r"no module is left .* --exclude-modules \.\* excludes all of --target-modules query key\.\nLeave one",
        ),
        (
            {"modules_to_save": ("layernorm",)},
            r"--modules-to-save: 'layernorm' is no module of the model that has weights\.\nExpected LayerNorm, att",
        ),
        ({"modules_to_save": ("dropout",)}, r"--modules-to-save: 'dropout' is no module of the model that has weights"),
        ({"modules_to_save": ("pooler",)}, r"--modules-to-save: 'pooler' is no module of the model that has weights"),
        (
            {"modules_to_save": ("embeddings",), "last_layers": 1},
            r"--modules-to-save: 'embeddings' is no module of the layers that are trained that has weights\.\nExp",
        ),
        (
            {"modules_to_save": ("query",)},
            r"--modules-to-save names 'encoder\.layer\.0\.attention\.self\.query', which gets an adapter too\.\n"
            r"Type:  --exclude-modules query ",
        ),
        (
            {"layers_to_transform": (0, 2)},
            r"--layers-to-transform names layer 2, but the model's 2 layers are 0 to 1\.",
        ),
        ({"last_layers": 3}, r"--last-layers is 3, but the model has 2 layers\."),
        ({"last_layers": 3, "method": "full"}, r"--last-layers is 3, but the model has 2 layers\."),
        ({"layers_to_transform": (2,), "method": "full"}, r"--layers-to-transform names layer 2, but"),
    ],
)
def test_names_that_fit_nothing(options: dict[str, Any], expected: str, encoder: Encoder) -> None:
    for refuse in (check_trainable, make_trainable):
        with pytest.raises(ConfigError, match=expected):
            refuse(encoder, AdapterConfig(**options))


def test_weights_in_four_bits_cannot_be_trained_in_full(st_folder: Path, load: Callable[..., Encoder]) -> None:
    """That is found before they are quantised."""
    config = AdapterConfig(method="qlora", modules_to_save=("query",), exclude_modules=("query",))
    for refuse, four_bit in ((check_trainable, False), (check_trainable, True), (make_trainable, True)):
        with pytest.raises(
            ConfigError, match=r"--modules-to-save names '.*0.*query', whose weights are in 4 bits .*\n.*norms"
        ):
            refuse(load(st_folder, four_bit=four_bit), config)


@pytest.mark.parametrize(
    "options", [{"last_layers": 1}, {"layers_to_transform": (0,)}, {"last_layers": 1, "method": "full"}]
)
def test_layers_that_share_their_weights_cannot_be_chosen(
    options: dict[str, Any], make_backbone: Callable[..., PreTrainedModel]
) -> None:
    albert = make_backbone(AlbertConfig, embedding_size=16)
    expected = (
        r"AlbertModel uses the same weights in all its layers.*\nLeave --layers-to-transform and --last-layers out"
    )
    with pytest.raises(ConfigError, match=expected):
        trained_layers(albert, AdapterConfig(**options))
    assert trained_layers(albert, AdapterConfig()) is None


def test_a_module_that_peft_would_take_for_others_is_refused(make_backbone: Callable[..., PreTrainedModel]) -> None:
    """Its list of modules to save holds ends of names, and Qwen3's last norm is named "norm"."""
    with torch.device("meta"):
        qwen = make_backbone(Qwen3Config, num_key_value_heads=2, head_dim=8)
    expected = (
        r"--modules-to-save names 'norm', and PEFT, .* would take 'layers\.0\..*norm' too.*\nType:  .*'\.\*norm' "
    )
    with pytest.raises(ConfigError, match=expected):
        saved_modules(qwen, AdapterConfig(modules_to_save=("norm",)), [])
    every = saved_modules(qwen, AdapterConfig(modules_to_save=(".*norm",)), [])
    assert {name.rpartition(".")[2] for name in every} == {
        "norm", "q_norm", "k_norm", "input_layernorm", "post_attention_layernorm"
    }  # fmt: skip
