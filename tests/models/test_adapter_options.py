"""Every adapter option does what it says, and what it trained is what is saved.

Shapes: `B` texts, `E` embedding size, `T` tokens of all texts.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from peft.tuners.lora import LoraLayer
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import AutoModel, AutoTokenizer, BertConfig, ModernBertConfig

from embedtune.config import AdapterConfig
from embedtune.errors import ConfigError
from embedtune.models.adapters import check_trainable, make_trainable
from embedtune.models.encoder import Encoder
from embedtune.models.quantize import nf4_layers
from embedtune.models.recompute import recompute_layers

Load = Callable[..., Encoder]

OPTIONS: dict[str, dict[str, Any]] = {
    "plain": {},
    "rslora": {"rslora": True},
    "dora": {"dora": True},
    "gaussian": {"init": "gaussian"},
    "pissa": {"init": "pissa"},
    "pissa, rslora": {"init": "pissa", "rslora": True},
    "pissa, biases and norms": {"init": "pissa", "bias": "all", "modules_to_save": ("LayerNorm",)},
    "one layer": {"target_modules": ("1.attention.self.query",)},
    "embeddings": {"target_modules": ("word_embeddings",)},
    "embeddings and dora": {"target_modules": ("all-linear", "word_embeddings"), "dora": True},
    "all biases": {"bias": "all"},
    "all biases of the last layer": {"bias": "all", "last_layers": 1},
    "adapter's biases": {"bias": "lora_only", "target_modules": ("query", "value")},
    "norms": {"modules_to_save": ("LayerNorm",)},
    "norms of the last layer": {"modules_to_save": ("LayerNorm",), "last_layers": 1},
    "a module with children": {"modules_to_save": ("embeddings",)},
    "linear layers in full": {"modules_to_save": ("query",), "exclude_modules": ("query",)},
    "norms, biases and dora": {"modules_to_save": ("LayerNorm",), "bias": "all", "dora": True},
}


def attach(encoder: Encoder, **options: Any) -> Encoder:
    """Make the encoder trainable; returns it."""
    sizes = {} if options.get("method") == "full" else {"rank": 4, "alpha": 8.0}
    torch.manual_seed(0)
    make_trainable(encoder, AdapterConfig(**{**sizes, **options}))
    return encoder


def move(encoder: Encoder) -> Encoder:
    """Change all that is trained, as training would; returns the encoder."""
    generator = torch.Generator().manual_seed(1)
    for parameter in trained(encoder).values():
        with torch.no_grad():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
    return encoder


def embed(encoder: Encoder, texts: Sequence[str]) -> Tensor:
    tokens = encoder.token_table(texts, "passage")
    embeddings_BE: Tensor = encoder.embed([tokens[index] for index in range(len(tokens))])
    return embeddings_BE


def gradients(encoder: Encoder, texts: Sequence[str]) -> dict[str, Tensor]:
    """Of every parameter that has one, after one backward pass."""
    encoder.zero_grad()
    embed(encoder, texts)[:, ::2].sum().backward()  # type: ignore[no-untyped-call]
    return {
        name: parameter.grad.clone() for name, parameter in encoder.named_parameters() if parameter.grad is not None
    }


def trained(encoder: Encoder) -> dict[str, nn.Parameter]:
    return {name: parameter for name, parameter in encoder.named_parameters() if parameter.requires_grad}


def lora_layers(encoder: Encoder) -> dict[str, Any]:
    return {name: module for name, module in encoder.backbone.named_modules() if isinstance(module, LoraLayer)}


def update_OI(layer: Any) -> Tensor:
    """What an adapter without DoRA adds to a layer's weight."""
    delta: Tensor = layer.get_delta_weight("default")
    return delta.detach()


def merged_embeddings(encoder: Encoder, texts: list[str]) -> Tensor:
    embeddings_BE = encoder.merged().encode_document(texts, convert_to_tensor=True)
    assert isinstance(embeddings_BE, Tensor)
    return embeddings_BE


def take_weights(dense: Encoder, four_bit: Encoder) -> None:
    """Give an encoder the weights that another one holds in 4 bits."""
    for name, layer in nf4_layers(four_bit).items():
        dense.backbone.get_submodule(name).weight = nn.Parameter(
            layer.frozen_weight(torch.float32), requires_grad=False
        )


def hidden_states(model: nn.Module, folder: Path, texts: list[str]) -> Tensor:
    """Last hidden states of all tokens, padding left out, shape (T, E)."""
    features = AutoTokenizer.from_pretrained(folder)(texts, padding=True, return_tensors="pt")
    with torch.no_grad():
        hidden_TE: Tensor = model(**features).last_hidden_state[features["attention_mask"].bool()]
    return hidden_TE


def plain_peft(base: Path, adapter: Path) -> nn.Module:
    return PeftModel.from_pretrained(AutoModel.from_pretrained(base), str(adapter)).eval()


def assert_same_gradients(actual: dict[str, Tensor], expected: dict[str, Tensor], *, rtol: float = 1e-3) -> None:
    """Within `rtol` of the largest gradient of all: that of a key's bias is zero but for rounding."""
    assert actual.keys() == expected.keys()
    largest = max(gradient.abs().max().item() for gradient in expected.values())
    for name, gradient in expected.items():
        torch.testing.assert_close(actual[name], gradient, atol=rtol * largest, rtol=0, msg=name)


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_what_was_trained_is_saved_and_merged(
    options: dict[str, Any], st_folder: Path, bare_folder: Path, sentences: list[str], load: Load, tmp_path: Path
) -> None:
    encoder = attach(load(st_folder), **options)
    before_BE = embed(encoder, sentences[:9]).detach()
    trained_BE = embed(move(encoder), sentences[:9]).detach()
    assert (trained_BE - before_BE).abs().max() > 0.01
    torch.testing.assert_close(merged_embeddings(encoder, sentences[:9]), trained_BE, atol=1e-5, rtol=0)

    encoder.write_adapter(tmp_path)
    theirs_TE = hidden_states(plain_peft(bare_folder, tmp_path), bare_folder, sentences[:9])
    ours_TE = hidden_states(encoder.backbone, bare_folder, sentences[:9])
    torch.testing.assert_close(theirs_TE, ours_TE, atol=1e-4, rtol=0)


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_all_that_is_trained_has_the_gradient_of_padded_batches(
    options: dict[str, Any], st_folder: Path, sentences: list[str], load: Load
) -> None:
    encoder = move(attach(load(st_folder), **options))
    packed = gradients(encoder, sentences[:9])
    encoder.packed = False
    assert packed.keys() == trained(encoder).keys()
    assert_same_gradients(packed, gradients(encoder, sentences[:9]), rtol=1e-5)


@pytest.mark.parametrize("kind", ["plain", "pissa, biases and norms", "norms, biases and dora"])
def test_saving_does_not_disturb_training(
    kind: str, st_folder: Path, sentences: list[str], load: Load, tmp_path: Path
) -> None:
    encoder = move(attach(load(st_folder), **OPTIONS[kind]))
    before = gradients(encoder, sentences[:9])
    encoder.write_adapter(tmp_path)
    after = gradients(encoder, sentences[:9])
    assert after.keys() == before.keys()
    assert all(torch.equal(after[name], gradient) for name, gradient in before.items())


def test_the_rank_is_that_of_the_update(st_folder: Path, load: Load) -> None:
    for rank in (2, 5):
        encoder = move(attach(load(st_folder), rank=rank))
        assert {int(torch.linalg.matrix_rank(update_OI(layer))) for layer in lora_layers(encoder).values()} == {rank}


def test_alpha_and_rslora_scale_the_update(st_folder: Path, load: Load) -> None:
    def updates(**options: Any) -> dict[str, Tensor]:
        encoder = move(attach(load(st_folder), rank=4, **options))
        merged, base = encoder.merged().state_dict(), load(st_folder).state_dict()
        return {
            name: merged[f"0.model.{name}.weight"] - base[f"0.model.{name}.weight"] for name in lora_layers(encoder)
        }

    once = updates(alpha=4.0)
    for other, factor in ((updates(alpha=12.0), 3), (updates(alpha=4.0, rslora=True), math.sqrt(4))):
        for name, update in once.items():
            assert update.abs().max() > 0.01
            torch.testing.assert_close(other[name], factor * update, atol=1e-6, rtol=1e-4)


@pytest.mark.parametrize("dora", [False, True])
def test_dropout_is_on_in_training_only(dora: bool, st_folder: Path, sentences: list[str], load: Load) -> None:
    without_BE = embed(move(attach(load(st_folder), dora=dora)), sentences[:9])
    encoder = move(attach(load(st_folder), dora=dora, dropout=0.5))

    def seeded(seed: int) -> Tensor:
        torch.manual_seed(seed)
        return embed(encoder, sentences[:9])

    # A new adapter too is in the mode that the encoder is in, which is not training.
    torch.testing.assert_close(seeded(0), without_BE, atol=1e-6, rtol=0)
    encoder.train()
    assert (seeded(0) - seeded(1)).abs().max() > 0.01
    assert torch.equal(seeded(0), seeded(0))
    encoder.eval()
    torch.testing.assert_close(seeded(1), without_BE, atol=1e-6, rtol=0)


def test_attaching_an_adapter_keeps_the_mode(st_folder: Path, sentences: list[str], load: Load) -> None:
    encoder = move(attach(load(st_folder).train(), dropout=0.5))
    assert not torch.equal(embed(encoder, sentences[:9]), embed(encoder, sentences[:9]))


def test_dora_trains_the_size_of_the_weights(st_folder: Path, sentences: list[str], load: Load) -> None:
    encoder = load(st_folder)
    before_BE = embed(encoder, sentences[:9])
    attach(encoder, dora=True)
    torch.testing.assert_close(embed(encoder, sentences[:9]), before_BE, atol=1e-5, rtol=0)
    for layer in lora_layers(encoder).values():
        magnitude_O = layer.lora_magnitude_vector["default"].weight
        assert magnitude_O.requires_grad
        torch.testing.assert_close(magnitude_O.detach(), layer.get_base_layer().weight.norm(dim=1))
    with torch.no_grad():  # B is still zero, so this size is all that changes
        layer.lora_magnitude_vector["default"].weight.mul_(2)
    weight = encoder.merged().state_dict()["0.model.encoder.layer.1.output.dense.weight"]
    torch.testing.assert_close(weight, 2 * layer.get_base_layer().weight)


def test_a_gaussian_start_is_without_effect(st_folder: Path, sentences: list[str], load: Load) -> None:
    encoder = load(st_folder)
    before_BE = embed(encoder, sentences[:9])
    attach(encoder, init="gaussian", rank=8)
    torch.testing.assert_close(embed(encoder, sentences[:9]), before_BE, atol=1e-6, rtol=0)
    layers = lora_layers(encoder).values()
    assert all(not layer.lora_B["default"].weight.any() for layer in layers)
    values = torch.cat([layer.lora_A["default"].weight.detach().flatten() for layer in layers])
    assert values.std().item() == pytest.approx(1 / 8, rel=0.05)
    # The default start is uniform within 1/sqrt(32), which a Gaussian often leaves.
    assert values.abs().max() > 2.5 / 8


@pytest.mark.parametrize("rslora", [False, True])
def test_pissa_takes_the_main_directions_out_of_the_base(
    rslora: bool, st_folder: Path, sentences: list[str], load: Load
) -> None:
    encoder, original = load(st_folder), load(st_folder)
    before_BE = embed(encoder, sentences[:9])
    attach(encoder, init="pissa", rslora=rslora, alpha=16.0)
    torch.testing.assert_close(embed(encoder, sentences[:9]), before_BE, atol=1e-4, rtol=0)
    for name, layer in lora_layers(encoder).items():
        weight = original.backbone.get_submodule(name).weight
        assert isinstance(weight, Tensor)
        left, values, right = torch.linalg.svd(weight, full_matrices=False)
        torch.testing.assert_close(update_OI(layer), left[:, :4] * values[:4] @ right[:4], atol=1e-4, rtol=0)
        torch.testing.assert_close(layer.get_base_layer().weight, weight - update_OI(layer), atol=1e-5, rtol=0)


def test_an_untrained_pissa_adapter_is_saved_as_no_change(
    st_folder: Path, bare_folder: Path, sentences: list[str], load: Load, tmp_path: Path
) -> None:
    attach(load(st_folder), init="pissa").write_adapter(tmp_path)
    theirs_TE = hidden_states(plain_peft(bare_folder, tmp_path), bare_folder, sentences[:9])
    base_TE = hidden_states(AutoModel.from_pretrained(bare_folder).eval(), bare_folder, sentences[:9])
    torch.testing.assert_close(theirs_TE, base_TE, atol=1e-5, rtol=0)


@pytest.mark.parametrize("options", [{"alpha": 4.0}, {"alpha": 16.0}, {"alpha": 8.0, "rslora": True}])
def test_loftq_corrects_the_error_of_four_bits(
    options: dict[str, Any], st_folder: Path, sentences: list[str], load: Load
) -> None:
    original, encoder = load(st_folder), load(st_folder, four_bit=True)
    original_BE, four_bit_BE = embed(original, sentences[:30]), embed(encoder, sentences[:30])
    attach(encoder, method="qlora", init="loftq", rank=8, **options)
    corrected_BE = embed(encoder, sentences[:30]).detach()
    assert (corrected_BE - original_BE).norm() < 0.9 * (four_bit_BE - original_BE).norm()
    for name, layer in nf4_layers(encoder).items():
        weight = original.backbone.get_submodule(name).weight
        assert isinstance(weight, Tensor)
        error = weight - layer.frozen_weight(torch.float32)
        left = (error - update_OI(lora_layers(encoder)[name])).norm()
        # No update of that rank is nearer (Eckart and Young).
        torch.testing.assert_close(left, torch.linalg.svdvals(error)[8:].norm(), atol=1e-5, rtol=1e-3)
    trained_BE = embed(move(encoder), sentences[:9]).detach()
    torch.testing.assert_close(merged_embeddings(encoder, sentences[:9]), trained_BE, atol=1e-5, rtol=0)


def test_qlora_needs_four_bits(st_folder: Path, load: Load) -> None:
    with pytest.raises(ValueError, match="load it with four_bit=True"):
        attach(load(st_folder), method="qlora")


@pytest.fixture
def wide_folder(make_checkpoint: Callable[..., Path], bert_config: dict[str, Any]) -> Path:
    """A BERT whose rows are whole blocks of 4-bit weights."""
    return make_checkpoint(BertConfig(**{**bert_config, "hidden_size": 64, "intermediate_size": 128}))


@pytest.mark.parametrize("memory", ["auto", "low"])
def test_dora_on_four_bits_is_dora_on_the_same_weights(
    memory: str, wide_folder: Path, sentences: list[str], load: Load
) -> None:
    four_bit, dense = load(wide_folder, four_bit=True, memory=memory), load(wide_folder)
    take_weights(dense, four_bit)
    before_BE = embed(four_bit, sentences[:9])
    attach(four_bit, method="qlora", dora=True)
    torch.testing.assert_close(embed(four_bit, sentences[:9]), before_BE, atol=1e-5, rtol=0)
    attach(dense, dora=True)
    trained_BE = embed(move(four_bit), sentences[:9]).detach()
    torch.testing.assert_close(trained_BE, embed(move(dense), sentences[:9]), atol=1e-5, rtol=0)
    assert_same_gradients(gradients(four_bit, sentences[:9]), gradients(dense, sentences[:9]))
    torch.testing.assert_close(merged_embeddings(four_bit, sentences[:9]), trained_BE, atol=1e-5, rtol=0)


def test_dora_on_four_bits_that_would_be_misread_is_refused(st_folder: Path, load: Load) -> None:
    expected = (
        r"inputs are a multiple of 64 .* 'encoder\.layer\.0\.attention\.self\.query' has 32\.\nType:  --method lora"
    )
    config = AdapterConfig(method="qlora", dora=True, rank=4)
    with pytest.raises(ConfigError, match=expected):
        check_trainable(load(st_folder), config)
    with pytest.raises(ConfigError, match=expected):
        make_trainable(load(st_folder, four_bit=True), config)


def test_biases_that_are_trained(st_folder: Path, load: Load) -> None:
    def biases(**options: Any) -> set[str]:
        names = [name.removeprefix("0.model.") for name in trained(attach(load(st_folder), **options))]
        return {name.replace(".base_layer", "") for name in names if name.endswith("bias")}

    every = {name for name, _ in load(st_folder).backbone.named_parameters() if name.endswith("bias")}
    assert biases() == set()
    assert biases(bias="all") == {name for name in every if "pooler" not in name}
    assert biases(bias="lora_only") == {name for name in every if not any(x in name for x in ("pooler", "LayerNorm"))}
    assert biases(bias="lora_only", target_modules=("query",)) == {
        f"encoder.layer.{number}.attention.self.query.bias" for number in range(2)
    }
    assert biases(bias="all", target_modules=("query",), layers_to_transform=(1,)) == {
        name for name in every if name.startswith("encoder.layer.1.")
    }


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("four_bit", [False, True])
@pytest.mark.parametrize("bias", ["all", "lora_only"])
def test_the_gradients_of_biases_are_pefts(
    bias: str, four_bit: bool, precision: str, st_folder: Path, sentences: list[str], load: Load
) -> None:
    encoder = load(st_folder, precision=precision, four_bit=four_bit)
    method = "qlora" if four_bit else "lora"
    move(attach(encoder, method=method, bias=bias, target_modules=("query", "value", "dense")))
    fused = gradients(encoder, sentences[:9])
    for layer in lora_layers(encoder).values():
        del layer.forward
    assert sum(name.endswith("base_layer.bias") for name in fused) == 2 * 5
    assert_same_gradients(fused, gradients(encoder, sentences[:9]), rtol=1e-5 if precision == "fp32" else 0.02)


def test_the_gradients_of_biases_are_those_of_a_base_in_full_precision(
    st_folder: Path, sentences: list[str], load: Load
) -> None:
    """On layers without an adapter too."""
    four_bit, dense = load(st_folder, four_bit=True), load(st_folder)
    take_weights(dense, four_bit)
    move(attach(four_bit, method="qlora", bias="all", target_modules=("query",)))
    move(attach(dense, bias="all", target_modules=("query",)))
    assert_same_gradients(gradients(four_bit, sentences[:9]), gradients(dense, sentences[:9]), rtol=1e-5)


@pytest.mark.parametrize(
    "options",
    [{"bias": "all"}, {"bias": "lora_only"}, {"modules_to_save": ("LayerNorm", "word_embeddings")}, {"method": "full"}],
)
def test_weights_that_are_trained_are_held_in_fp32_and_computed_in_bf16(
    options: dict[str, Any], st_folder: Path, sentences: list[str], load: Load
) -> None:
    encoder = attach(load(st_folder, precision="bf16"), **options)
    assert {parameter.dtype for parameter in trained(encoder).values()} == {torch.float32}
    assert encoder.compute_dtype == torch.bfloat16
    computed = []
    encoder.backbone.get_submodule("encoder.layer.0.attention.self.query").register_forward_hook(
        lambda module, inputs, out: computed.append(out.dtype)
    )
    before_BE = embed(encoder, sentences[:9]).detach()
    trained_BE = embed(move(encoder), sentences[:9]).detach()
    assert (trained_BE - before_BE).abs().max() > 0.05
    packed = gradients(encoder, sentences[:9])
    encoder.packed = False
    assert_same_gradients(gradients(encoder, sentences[:9]), packed, rtol=0.02)
    assert set(computed) == {torch.bfloat16}
    torch.testing.assert_close(merged_embeddings(encoder, sentences[:9]), trained_BE, atol=0.02, rtol=0)
    # A step that would be lost on weights in bf16.
    weights = {name: parameter.detach().clone() for name, parameter in trained(encoder).items()}
    torch.optim.SGD(trained(encoder).values(), lr=1e-6).step()
    moved = {name: new for name, new in trained(encoder).items() if not torch.equal(new, weights[name])}
    assert any(torch.equal(new.bfloat16(), weights[name].bfloat16()) for name, new in moved.items())


def test_modules_to_save_are_in_the_adapter(st_folder: Path, load: Load, tmp_path: Path) -> None:
    options = {"modules_to_save": ("embeddings",), "target_modules": ("query",)}
    encoder = move(attach(load(st_folder), **options))
    originals = [name for name, parameter in trained(encoder).items() if "original_module" in name]
    assert not originals
    encoder.write_adapter(tmp_path)
    saved = load_file(tmp_path / "adapter_model.safetensors")
    copies = {name.removeprefix("base_model.model."): tensor for name, tensor in saved.items() if "lora_" not in name}
    assert sorted(copies) == [
        "embeddings.LayerNorm.bias",
        "embeddings.LayerNorm.weight",
        "embeddings.position_embeddings.weight",
        "embeddings.token_type_embeddings.weight",
        "embeddings.word_embeddings.weight",
    ]
    base, merged = load(st_folder).state_dict(), encoder.merged().state_dict()
    for name, tensor in copies.items():
        assert not torch.equal(tensor, base[f"0.model.{name}"])
        assert torch.equal(tensor, merged[f"0.model.{name}"])


@pytest.mark.parametrize(
    ("options", "embeddings_too"),
    [
        ({"last_layers": 1}, False),
        ({"layers_to_transform": (1,)}, False),
        ({"last_layers": 1, "bias": "all"}, False),
        ({"last_layers": 1, "modules_to_save": ("LayerNorm",)}, False),
        ({"last_layers": 1, "method": "full"}, False),
        ({"last_layers": 2, "method": "full"}, False),
        ({"method": "full"}, True),
    ],
)
def test_nothing_below_the_trained_layers_has_a_gradient(
    options: dict[str, Any], embeddings_too: bool, st_folder: Path, sentences: list[str], load: Load
) -> None:
    encoder = attach(load(st_folder), **options)
    lowest = 0 if embeddings_too or options.get("last_layers") == 2 else 1
    inputs_need_gradients = []
    encoder.backbone.get_submodule(f"encoder.layer.{lowest}").register_forward_pre_hook(
        lambda module, inputs: inputs_need_gradients.append(inputs[0].requires_grad)
    )
    found = gradients(encoder, sentences[:9])
    assert inputs_need_gradients == [embeddings_too]
    assert found.keys() == trained(encoder).keys()
    expected = tuple(f"0.model.encoder.layer.{number}." for number in range(lowest, 2))
    below = {name for name in found if not name.startswith(expected)}
    assert all(name.startswith("0.model.embeddings.") for name in below)
    assert bool(below) == embeddings_too


def test_full_fine_tuning_trains_all_but_the_pooler(
    make_st_folder: Callable[..., Path], bare_folder: Path, sentences: list[str], load: Load
) -> None:
    encoder = attach(load(make_st_folder(bare_folder, dense=True)), method="full")
    assert {name for name, _ in encoder.named_parameters()} - trained(encoder).keys() == {
        "0.model.pooler.dense.weight",
        "0.model.pooler.dense.bias",
    }
    assert {"2.linear.weight", "3.linear.weight", "3.linear.bias", "4.norm.weight"} <= trained(encoder).keys()
    before = {name: parameter.detach().clone() for name, parameter in encoder.named_parameters()}
    optimizer = torch.optim.AdamW(trained(encoder).values(), lr=1e-2)
    gradients(encoder, sentences[:9])
    optimizer.step()
    same = {name for name, parameter in encoder.named_parameters() if torch.equal(parameter, before[name])}
    assert same == {"0.model.pooler.dense.weight", "0.model.pooler.dense.bias"}
    stepped_BE = embed(encoder, sentences[:9]).detach()
    torch.testing.assert_close(merged_embeddings(encoder, sentences[:9]), stepped_BE, atol=1e-5, rtol=0)


def test_an_adapter_leaves_the_modules_after_pooling_alone(
    make_st_folder: Callable[..., Path], bare_folder: Path, load: Load
) -> None:
    encoder = attach(load(make_st_folder(bare_folder, dense=True)), bias="all")
    assert all(name.startswith("0.model.") for name in trained(encoder))


@contextmanager
def kept_bytes(encoder: Encoder) -> Iterator[list[int]]:
    """Collects the sizes of all that is kept for the backward pass, each storage once, weights left out."""
    seen = {parameter.untyped_storage().data_ptr() for parameter in encoder.parameters()}
    sizes: list[int] = []

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in seen:
            seen.add(storage.data_ptr())
            sizes.append(storage.nbytes())
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        yield sizes


@pytest.mark.parametrize(
    ("options", "loading"),
    [
        ({}, {}),
        ({"dropout": 0.3}, {}),
        ({"dropout": 0.3, "dora": True}, {}),
        ({"dropout": 0.3, "last_layers": 1}, {}),
        ({"bias": "all", "dropout": 0.3}, {"precision": "bf16"}),
        ({"method": "qlora", "dropout": 0.3}, {"four_bit": True, "memory": "low"}),
        ({"method": "full"}, {}),
    ],
)
def test_recomputed_layers_have_the_same_gradients_in_less_memory(
    options: dict[str, Any], loading: dict[str, Any], st_folder: Path, sentences: list[str], load: Load
) -> None:
    encoder = move(attach(load(st_folder, **loading), **options)).train()
    results, kept = [], []
    for recompute in (False, True):
        if recompute:
            assert recompute_layers(encoder.backbone) == 2
        torch.manual_seed(3)
        results.append(gradients(encoder, sentences[:30]))
        with kept_bytes(encoder) as sizes:
            embeddings_BE = embed(encoder, sentences[:30])
        kept.append(sum(sizes))
        del embeddings_BE
    usual, recomputed = results
    assert recomputed.keys() == usual.keys() == trained(encoder).keys()
    assert all(torch.equal(recomputed[name], gradient) for name, gradient in usual.items())
    assert kept[1] < 0.5 * kept[0]


def test_recomputing_changes_no_embedding(st_folder: Path, sentences: list[str], load: Load) -> None:
    encoder = move(attach(load(st_folder)))
    before_BE = embed(encoder, sentences[:9])
    recompute_layers(encoder.backbone)
    assert torch.equal(embed(encoder, sentences[:9]), before_BE)
    with torch.inference_mode():
        assert torch.equal(embed(encoder, sentences[:9]), before_BE)


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (
            {"dropout": 0.1, "target_modules": ("word_embeddings",)},
            r"--dropout is 0\.1: .* on embeddings only, such as 'embeddings\.word_embeddings'\.\nLeave it out",
        ),
        (
            {"init": "pissa", "target_modules": ("query", "word_embeddings")},
            r"--init pissa is for linear layers, .* 'embeddings\.word_embeddings'\.\nType:  --exclude-modules word_emb",
        ),
        (
            {"init": "pissa", "rank": 33},
            r"--rank is 33, but the weights of '.*' have 32 directions .*\nType:  --init pissa --rank 32 or less",
        ),
        (
            {"method": "qlora", "init": "loftq", "rank": 33},
            r"--rank is 33, but the weights of '.*' have 32 directions .*\nType:  --init loftq --rank 32 or less",
        ),
        (
            {"method": "qlora", "init": "loftq", "target_modules": ("word_embeddings",)},
            r"--init loftq corrects .* no module with an adapter has them\.\nType:  --target-modules all-linear",
        ),
        (
            {"bias": "lora_only", "target_modules": ("word_embeddings",)},
            r"--bias lora_only would train nothing: .*\nLeave it out",
        ),
    ],
)
def test_options_that_would_have_no_effect_are_refused(
    options: dict[str, Any], expected: str, st_folder: Path, load: Load
) -> None:
    with pytest.raises(ConfigError, match=expected):
        check_trainable(load(st_folder), AdapterConfig(**options))
    with pytest.raises(ConfigError, match=expected):
        make_trainable(load(st_folder, four_bit=options.get("method") == "qlora"), AdapterConfig(**options))


def test_biases_of_a_model_that_has_none_are_refused(
    make_checkpoint: Callable[..., Path], bert_config: dict[str, Any], load: Load
) -> None:
    config = ModernBertConfig(**bert_config, pad_token_id=0, cls_token_id=2, sep_token_id=3)
    folder = make_checkpoint(config)
    for bias in ("all", "lora_only"):
        with pytest.raises(ConfigError, match=rf"--bias {bias} would train nothing: .*\nLeave it out"):
            check_trainable(load(folder), AdapterConfig(bias=bias))
