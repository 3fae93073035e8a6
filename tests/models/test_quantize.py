"""A base in 4 bits: what is quantised, what it keeps, and that bitsandbytes' own forward stays out of the way."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from bitsandbytes.nn import Linear4bit
from peft import PeftModel

from embedtune.config import AdapterConfig
from embedtune.errors import MissingExtraError
from embedtune.models import quantize
from embedtune.models.adapters import check_trainable, trainable_parameters
from embedtune.models.encoder import Encoder

Load = Callable[..., Encoder]
Adapt = Callable[..., PeftModel]


def test_the_encoders_linear_layers_and_no_others(st_folder: Path, load: Load) -> None:
    encoder, plain = load(st_folder, four_bit=True), load(st_folder)
    layers = quantize.nf4_layers(encoder)
    assert len(layers) == 2 * 6
    assert not any("pooler" in name for name in layers)
    assert all(layer.weight.data.dtype == torch.uint8 for layer in layers.values())
    assert all(layer.weight.quant_state.nested for layer in layers.values())  # double quantisation
    quantised = {f"0.model.{name}.weight" for name in layers}
    kept = {name: tensor for name, tensor in plain.state_dict().items() if name not in quantised}
    assert len(kept) == len(plain.state_dict()) - 12
    for name, tensor in kept.items():
        assert torch.equal(encoder.state_dict()[name], tensor), name
    assert trainable_parameters(encoder) == trainable_parameters(plain)


@pytest.mark.parametrize(("memory", "said"), [("auto", "a dequantised copy of"), ("low", "dequantised at each use")])
def test_the_user_is_told_whether_a_copy_is_kept(memory: str, said: str, st_folder: Path, load: Load) -> None:
    encoder = load(st_folder, four_bit=True, memory=memory)
    (note,) = encoder.notes
    assert note.startswith("12 linear layers in 4 bits (NF4): ")
    assert said in note
    kept = [layer.dense_copy is not None for layer in quantize.nf4_layers(encoder).values()]
    assert kept == [memory == "auto"] * 12


def test_no_copy_where_it_would_take_too_much(st_folder: Path, load: Load, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(quantize, "_free_bytes", lambda device: 4 * 2**10)
    encoder = load(st_folder, four_bit=True)
    assert "would take too much" in encoder.notes[0]
    assert all(layer.dense_copy is None for layer in quantize.nf4_layers(encoder).values())


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_copy_computes_what_dequantising_does(
    precision: str, st_folder: Path, sentences: list[str], load: Load, adapt: Adapt
) -> None:
    results = []
    for memory in ("auto", "low"):
        encoder = load(st_folder, four_bit=True, memory=memory, precision=precision)
        adapt(encoder, method="qlora")
        tokens = encoder.token_table(sentences[:20], "passage")
        embeddings_BE = encoder.embed([tokens[index] for index in range(20)])
        embeddings_BE[:, ::2].sum().backward()  # type: ignore[no-untyped-call]
        gradients = [p.grad for p in encoder.parameters() if p.grad is not None]
        results.append([embeddings_BE, *gradients])
    assert len(results[0]) == 1 + 2 * 12
    for with_copy, without in zip(*results, strict=True):
        assert torch.equal(with_copy, without)


def test_bitsandbytes_own_forward_is_never_called(
    st_folder: Path, sentences: list[str], load: Load, adapt: Adapt, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It repacks the weights in place on some CPUs, after which training fails."""

    def fail(*_: Any) -> None:
        raise AssertionError("Linear4bit.forward was called")

    monkeypatch.setattr(Linear4bit, "forward", fail)
    encoder = load(st_folder, four_bit=True)
    adapt(encoder, method="qlora", exclude_modules=("query",))  # some layers have an adapter and some have none
    before = {name: layer.weight.data.clone() for name, layer in quantize.nf4_layers(encoder).items()}
    tokens = encoder.token_table(sentences[:20], "passage")
    encoder.embed_all(tokens)
    encoder.train()
    encoder.embed([tokens[index] for index in range(20)]).sum().backward()  # type: ignore[no-untyped-call]
    for name, layer in quantize.nf4_layers(encoder).items():
        assert torch.equal(layer.weight.data, before[name])


def test_without_bitsandbytes_the_user_is_told_what_to_install(
    st_folder: Path, load: Load, monkeypatch: pytest.MonkeyPatch
) -> None:
    encoder = load(st_folder)
    monkeypatch.setitem(sys.modules, "bitsandbytes.nn", None)
    monkeypatch.delitem(sys.modules, "embedtune.models.quantize")
    monkeypatch.delattr("embedtune.models.quantize", raising=False)
    with pytest.raises(MissingExtraError, match=r"'bitsandbytes'.*\nType:  pip install 'embedtune\[quant\]'"):
        check_trainable(encoder, AdapterConfig(method="qlora"))
