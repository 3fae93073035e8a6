"""A packed MPNet against transformers' own on padded batches, in hidden states and every gradient.

Shapes: `B` texts, `L` tokens of the longest, `T` tokens of all of them, `E` hidden size.
"""

from __future__ import annotations

import pickle
from collections.abc import Callable, Mapping, Sequence
from copy import deepcopy
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.checkpoint import checkpoint
from transformers import BertConfig, BertModel, MPNetConfig, MPNetModel

from embedtune.models.mpnet import is_mpnet, pack_mpnet
from embedtune.models.packing import TokenIds, pack, pad, token_order

CPU = torch.device("cpu")
VOCABULARY = 200
LENGTHS = {
    "odd lengths": (1, 31, 3, 4, 17, 3, 9, 11, 13, 7),
    "one text": (23,),
    "equal lengths": (8, 8, 8),
    "farther than the bias tells apart": (150, 5, 149, 130),
}


COMPARED = (
    "encoder.relative_attention_bias.weight",
    "encoder.layer.0.attention.attn.q.weight",
    "encoder.layer.0.attention.attn.v.weight",
    "embeddings.word_embeddings.weight",
)
"""Parameters whose gradients stand for the others' in half precision."""


@pytest.fixture(scope="module")
def stock() -> MPNetModel:
    """Made of transformers' own code, in fp64."""
    config = MPNetConfig(
        vocab_size=VOCABULARY,
        hidden_size=32,
        num_hidden_layers=3,
        num_attention_heads=4,
        intermediate_size=64,
        max_position_embeddings=160,
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = MPNetModel(config).train(False)
        # Stock initial weights are so small that attention is nearly uniform and mistakes would not show.
        for parameter in model.parameters():
            if parameter.ndim >= 2:
                torch.nn.init.normal_(parameter, std=0.3)
    # Weights this large blow rounding up: fp64 tells it from a mistake.
    return in_dtype(model, torch.float64)


@pytest.fixture
def packed(stock: MPNetModel) -> MPNetModel:
    model = deepcopy(stock)
    pack_mpnet(model)
    return model


def in_dtype(model: MPNetModel, dtype: torch.dtype) -> MPNetModel:
    """In place; transformers' own `to` has no types."""
    torch.nn.Module.to(model, dtype)
    return model


def random_texts(lengths: Sequence[int]) -> list[TokenIds]:
    generator = np.random.default_rng(0)
    return [generator.integers(2, VOCABULARY, length, dtype=np.int32) for length in lengths]


def packed_hidden(model: MPNetModel, texts: Sequence[TokenIds]) -> Tensor:
    """Hidden states of the texts' tokens in the order given, shape (T, E)."""
    batch = pack(texts, position_offset=2, device=CPU)
    out = model(input_ids=batch.input_ids_1T, position_ids=batch.position_ids_1T, packed_layout=batch.layout)
    hidden_1TE: Tensor = out.last_hidden_state
    return hidden_1TE[0, token_order(batch)]


def padded_hidden(model: MPNetModel, texts: Sequence[TokenIds]) -> Tensor:
    """The same from a padded batch, without the padded positions."""
    features = pad(texts, pad_id=1, device=CPU)
    hidden_BLE: Tensor = model(**features).last_hidden_state
    return hidden_BLE[features["attention_mask"].bool()]


def differentiate(model: MPNetModel, hidden_TE: Tensor) -> dict[str, Tensor]:
    """The gradient of every parameter that the hidden states depend on, for a fixed random direction."""
    model.zero_grad()
    direction_TE = torch.randn(hidden_TE.shape, generator=torch.Generator().manual_seed(1))
    torch.autograd.backward((hidden_TE * direction_TE).sum())
    return {name: parameter.grad for name, parameter in model.named_parameters() if parameter.grad is not None}


def assert_same_gradients(actual: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> None:
    assert actual.keys() == expected.keys()
    for name, gradient in expected.items():
        torch.testing.assert_close(actual[name], gradient, atol=1e-10, rtol=1e-10, msg=f"{name} is off")


@pytest.mark.parametrize("name", LENGTHS)
def test_packed_hidden_states_and_gradients_are_the_padded_ones(
    name: str, stock: MPNetModel, packed: MPNetModel
) -> None:
    texts = random_texts(LENGTHS[name])
    expected_TE, actual_TE = padded_hidden(stock, texts), packed_hidden(packed, texts)
    torch.testing.assert_close(actual_TE, expected_TE, atol=1e-10, rtol=0)
    expected = differentiate(stock, expected_TE)
    assert expected.keys() == {name for name, _ in stock.named_parameters() if not name.startswith("pooler")}
    assert expected["encoder.relative_attention_bias.weight"].abs().max() > 1e-2
    assert_same_gradients(differentiate(packed, actual_TE), expected)


def test_the_bias_matters(packed: MPNetModel) -> None:
    texts = random_texts(LENGTHS["odd lengths"])
    before_TE = packed_hidden(packed, texts)
    torch.nn.init.zeros_(packed.encoder.relative_attention_bias.weight)
    assert (packed_hidden(packed, texts) - before_TE).abs().max() > 1e-2


class _LargestTensor(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Notes the number of elements of the largest tensor that an operation gives."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.elements = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        self.elements = max(self.elements, *(leaf.numel() for leaf in tree_leaves(out) if isinstance(leaf, Tensor)), 0)
        return out


def test_no_tensor_grows_with_the_square_of_the_tokens(stock: MPNetModel, packed: MPNetModel) -> None:
    texts = random_texts([1 + row % 9 for row in range(300)])
    tokens = sum(map(len, texts))
    with _LargestTensor() as largest:
        differentiate(packed, packed_hidden(packed, texts))
    assert largest.elements < tokens**2 / 10
    batch = pack(texts, position_offset=2, device=CPU)
    with torch.inference_mode(), _LargestTensor() as largest:
        stock(input_ids=batch.input_ids_1T, position_ids=batch.position_ids_1T)
    assert largest.elements >= tokens**2


@pytest.mark.parametrize("options", [{}, {"output_attentions": True, "output_hidden_states": True}], ids=str)
def test_a_padded_call_is_transformers_own(options: dict[str, bool], stock: MPNetModel, packed: MPNetModel) -> None:
    features = pad(random_texts(LENGTHS["odd lengths"]), pad_id=1, device=CPU)
    with torch.inference_mode():
        expected, actual = stock(**features, **options), packed(**features, **options)
    assert actual.keys() == expected.keys()
    for one, other in zip(tree_leaves(actual.to_tuple()), tree_leaves(expected.to_tuple()), strict=True):
        assert torch.equal(one, other)


def test_bf16_autocast(stock: MPNetModel, packed: MPNetModel) -> None:
    """The fp32 weights get fp32 gradients, no farther from the exact ones than the padded path's."""
    texts = random_texts(LENGTHS["odd lengths"])
    exact = differentiate(stock, padded_hidden(stock, texts))
    errors = {}
    for embed, model in ((padded_hidden, deepcopy(stock)), (packed_hidden, packed)):
        in_dtype(model, torch.float32)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            hidden_TE = embed(model, texts)
        actual = differentiate(model, hidden_TE)
        assert {gradient.dtype for gradient in actual.values()} == {torch.float32}
        errors[embed] = {name: (actual[name] - exact[name]).norm() / exact[name].norm() for name in COMPARED}
    for name in COMPARED:
        assert errors[packed_hidden][name] <= 1.5 * errors[padded_hidden][name] < 0.3, name


def test_attention_runs_in_the_dtype_of_autocast(packed: MPNetModel) -> None:
    dtypes = []
    out = in_dtype(packed, torch.float32).get_submodule("encoder.layer.0.attention.attn.o")
    out.register_forward_pre_hook(lambda _, inputs: dtypes.append(inputs[0].dtype))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        packed_hidden(packed, random_texts((3, 5)))
    assert dtypes == [torch.bfloat16]


def test_checkpointed_layers_give_the_same_gradients(packed: MPNetModel) -> None:
    texts = random_texts(LENGTHS["odd lengths"])
    expected = differentiate(packed, packed_hidden(packed, texts))
    runs = []
    for layer in packed.encoder.layer:
        layer.get_submodule("attention.attn").register_forward_pre_hook(lambda *_: runs.append(1))
        layer.forward = partial(checkpoint, layer.forward, use_reentrant=False)
    actual = differentiate(packed, packed_hidden(packed, texts))
    assert len(runs) == 2 * len(packed.encoder.layer)
    assert "encoder.relative_attention_bias.weight" in actual
    torch.testing.assert_close(actual, expected, atol=0, rtol=0)


@pytest.mark.parametrize("target", ["q", "k", "v", "o"])
def test_adapters_attached_afterwards_take_part(target: str, packed: MPNetModel) -> None:
    adapted = get_peft_model(packed, LoraConfig(r=4, target_modules=[target]))
    for name, parameter in adapted.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.3, generator=torch.Generator().manual_seed(2))
    texts = random_texts(LENGTHS["odd lengths"])
    expected = differentiate(packed, padded_hidden(packed, texts))
    actual = differentiate(packed, packed_hidden(packed, texts))
    assert len(expected) == 2 * len(packed.encoder.layer)
    assert_same_gradients(actual, expected)


@pytest.mark.parametrize("copied", [deepcopy, lambda model: pickle.loads(pickle.dumps(model))], ids=["copy", "pickle"])
def test_a_copy_is_packed_and_on_its_own(copied: Callable[[MPNetModel], MPNetModel], packed: MPNetModel) -> None:
    texts = random_texts((3, 5))
    before_TE = packed_hidden(packed, texts)
    twin = copied(packed)
    assert torch.equal(packed_hidden(twin, texts), before_TE)
    for parameter in packed.parameters():
        torch.nn.init.zeros_(parameter)
    assert torch.equal(packed_hidden(twin, texts), before_TE)


def test_only_mpnet_is_packed(stock: MPNetModel) -> None:
    bert = BertModel(BertConfig(vocab_size=9, hidden_size=8, num_hidden_layers=1, num_attention_heads=1))
    assert is_mpnet(stock)
    assert not is_mpnet(bert)
    with pytest.raises(TypeError, match="expected an MPNetModel, got BertModel"):
        pack_mpnet(bert)
