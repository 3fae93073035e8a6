"""Replayed steps are the encoder's own: the same embeddings, the same gradients, and none where that can't be."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from embedtune.config import AdapterConfig, ModelConfig
from embedtune.kernels.attention.tiles import Blocks, Table
from embedtune.models.adapters import make_trainable
from embedtune.models.encoder import Encoder
from embedtune.models.fixed_batch import FixedBatch, fill_up
from embedtune.models.layers import all_linears, read_layers
from embedtune.models.load import load_encoder
from embedtune.models.memory import release_spares
from embedtune.models.packing import TokenIds
from embedtune.models.recompute import recompute_layers
from embedtune.training import replay
from embedtune.training.microbatch import MicroBatch, embed_batch
from embedtune.training.random_state import same_bits
from embedtune.training.replay import Replay

MakeEncoder = Callable[..., Encoder]
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
needs_cuda = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device"),
]


def gpu(test: Any) -> Any:
    for mark in needs_cuda:
        test = mark(test)
    return test


@pytest.fixture
def make_encoder(st_folder: Path) -> MakeEncoder:
    def make(*, precision: str = "fp32", dropout: float = 0.0, method: str = "lora") -> Encoder:
        config = ModelConfig(base=str(st_folder), device=DEVICE, precision=precision)  # type: ignore[arg-type]
        adapter = AdapterConfig(method=method, dropout=dropout)  # type: ignore[arg-type]
        torch.manual_seed(0)
        encoder = load_encoder(config, master_weights=adapter.trains_weights)
        if method == "qlora":
            from embedtune.models.quantize import quantize  # needs bitsandbytes

            quantize(encoder, low_memory=False)
        make_trainable(encoder, adapter)
        with torch.no_grad():
            for parameter in encoder.parameters():
                if parameter.requires_grad:
                    parameter.add_(0.05 * torch.randn_like(parameter))
        return encoder.train()

    return make


@pytest.fixture
def batches(sentences: list[str]) -> Callable[[Encoder], list[list[TokenIds]]]:
    """Of several sizes, and two of the same one."""

    def make(encoder: Encoder) -> list[list[TokenIds]]:
        table = encoder.token_table([*sentences, *(" ".join([s] * 12) for s in sentences)], "passage")
        texts = [table[number] for number in range(len(table))]
        return [texts[:8], texts[40:48], texts[8:9], texts[10:30], texts[-6:], texts[30:38], texts[:8]]

    return make


def gradients(encoder: Encoder, embeddings_BE: Tensor) -> list[Tensor]:
    """Of a loss that has some for a single text too, whose similarity to itself is 1 whatever the weights are."""
    encoder.zero_grad()
    similarities_BB = embeddings_BE @ embeddings_BE.roll(1, 0).T
    loss = similarities_BB.mul(5).logsumexp(1).mean() + embeddings_BE[:, ::2].mean()
    loss.backward()  # type: ignore[no-untyped-call]
    return [p.grad.clone() for p in encoder.parameters() if p.grad is not None]


def assert_same(actual: list[Tensor], expected: list[Tensor], tolerance: float) -> None:
    """To `tolerance` of the largest in each tensor; where there is only rounding, to a hundredth of that of all."""
    assert len(actual) == len(expected) > 0
    largest = max(theirs.abs().max() for theirs in expected)
    for ours, theirs in zip(actual, expected, strict=True):
        assert (ours - theirs).abs().max() <= tolerance * theirs.abs().max() + tolerance / 100 * largest


@gpu
@pytest.mark.parametrize(("precision", "tolerance"), [("fp32", 1e-3), ("bf16", 5e-2), ("fp16", 2e-2)])
def test_replayed_gradients_are_the_encoders(
    precision: str, tolerance: float, make_encoder: MakeEncoder, batches: Callable[[Encoder], list[list[TokenIds]]]
) -> None:
    encoder = make_encoder(precision=precision)
    replayed = Replay(encoder)
    for texts in batches(encoder) * 2:
        own_BE, replayed_BE = encoder.embed(texts), replayed.embed(texts)
        assert type(replayed_BE.grad_fn) is type(own_BE.grad_fn)
        assert (replayed_BE - own_BE).abs().max() <= tolerance
        expected = gradients(encoder, own_BE)
        assert_same(gradients(encoder, replayed_BE), expected, tolerance)
        with torch.no_grad():  # the next batch meets other adapters
            for parameter in encoder.parameters():
                if parameter.requires_grad:
                    parameter.mul_(1.02)
    assert replayed._refusal is None
    assert 1 < replayed._captures < len(batches(encoder))


@gpu
def test_a_batch_whose_gradients_are_still_to_come_is_not_overwritten(
    make_encoder: MakeEncoder, batches: Callable[[Encoder], list[list[TokenIds]]]
) -> None:
    encoder = make_encoder()
    replayed = Replay(encoder)
    first, second, *_ = batches(encoder)
    expected = [gradients(encoder, encoder.embed(texts)) for texts in (first, second)]
    waiting_BE, other_BE = replayed.embed(first), replayed.embed(second)
    assert replayed._captures == 1
    assert_same(gradients(encoder, waiting_BE), expected[0], 1e-3)
    assert_same(gradients(encoder, other_BE), expected[1], 1e-3)
    dropped_BE = replayed.embed(first)
    del dropped_BE, waiting_BE, other_BE
    assert_same(gradients(encoder, replayed.embed(second)), expected[1], 1e-3)
    assert replayed._captures <= 2


@gpu
def test_micro_batches_are_replayed(
    make_encoder: MakeEncoder, batches: Callable[[Encoder], list[list[TokenIds]]]
) -> None:
    encoder = make_encoder()
    replayed, texts = Replay(encoder), batches(encoder)[3]
    expected = gradients(encoder, embed_batch(encoder, texts, MicroBatch(100)))
    for _ in range(2):
        assert_same(gradients(encoder, embed_batch(encoder, texts, MicroBatch(100), replayed.embed)), expected, 1e-3)
    assert replayed._captures > 0


def test_micro_batches_of_one_size_share_a_graph(make_encoder: MakeEncoder, monkeypatch: pytest.MonkeyPatch) -> None:
    """One that outgrew its room is recorded with room for both, so that the next turn records nothing."""

    class Recorded:
        def __init__(self, encoder: Encoder, layers: Any, inputs: FixedBatch, flat_N: Tensor, pool: Any) -> None:
            self.inputs = inputs

    tables = (Table({16: Blocks(16, 1)}, (32, Blocks(16, 1))),)
    monkeypatch.setattr(replay, "_Graph", Recorded)
    monkeypatch.setattr(replay, "_refusal", lambda encoder: None)
    monkeypatch.setattr(replay, "attention_tables", lambda *_: tables)
    monkeypatch.setattr(torch.cuda, "graph_pool_handle", lambda: None)
    short, long = ([np.ones(length, dtype=np.int32)] * (4_096 // length) for length in (4, 256))
    replayed = Replay(make_encoder())
    for texts in [short, long] * 3:
        found = replayed._find(texts)
        assert found is not None
        assert found[1].inputs.holds(fill_up(texts, tables, position_offset=0))
    assert replayed._captures == 2


@gpu
@pytest.mark.filterwarnings("ignore:Synchronization debug mode is a prototype")
def test_a_replayed_batch_waits_for_nothing(
    make_encoder: MakeEncoder, batches: Callable[[Encoder], list[list[TokenIds]]]
) -> None:
    encoder = make_encoder(precision="bf16")
    replayed, texts = Replay(encoder), batches(encoder)[0]
    gradients(encoder, replayed.embed(texts))
    torch.cuda.set_sync_debug_mode("error")
    try:
        gradients(encoder, replayed.embed(texts))
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert replayed._captures == 1


@gpu
def test_other_base_weights_are_recorded_anew(
    make_encoder: MakeEncoder, batches: Callable[[Encoder], list[list[TokenIds]]]
) -> None:
    encoder = make_encoder()
    replayed, texts = Replay(encoder), batches(encoder)[0]
    replayed.embed(texts)
    for module in encoder.modules():
        if isinstance(module, nn.Linear):
            module.weight.data = 1.1 * module.weight.data
    assert (replayed.embed(texts) - encoder.embed(texts)).abs().max() < 1e-3
    assert replayed._captures == 2


@pytest.mark.parametrize("method", ["lora", "qlora"])
def test_the_same_frozen_weights_are_known_again(method: str, make_encoder: MakeEncoder) -> None:
    if method == "qlora":
        pytest.importorskip("bitsandbytes")
    encoder = make_encoder(method=method)

    def found() -> tuple[Any, ...]:
        return replay.frozen_weights(all_linears(read_layers(encoder.fused_layers)))

    before = found()
    assert len(before) == 2 * 6 * len(encoder.fused_layers) > 0
    assert found() == before
    for module in encoder.modules():
        if isinstance(module, nn.Linear):
            module.bias.data = module.bias.data.clone()
            break
    assert found() != before


@gpu
def test_four_bit_weights_are_recorded_once(
    make_encoder: MakeEncoder, batches: Callable[[Encoder], list[list[TokenIds]]]
) -> None:
    pytest.importorskip("bitsandbytes")
    encoder = make_encoder(precision="bf16", method="qlora")
    replayed, texts = Replay(encoder), batches(encoder)[0]
    expected = gradients(encoder, encoder.embed(texts))
    for _ in range(3):
        assert_same(gradients(encoder, replayed.embed(texts)), expected, 5e-2)
    assert (replayed._captures, replayed._refusal) == (1, None)


@gpu
def test_graphs_are_given_up_where_memory_is_short_and_recorded_anew(
    make_encoder: MakeEncoder, batches: Callable[[Encoder], list[list[TokenIds]]]
) -> None:
    encoder = make_encoder()
    replayed, texts = Replay(encoder), batches(encoder)[0]
    expected = gradients(encoder, encoder.embed(texts))
    waiting_BE = replayed.embed(texts)
    assert release_spares()
    assert not release_spares()
    assert_same(gradients(encoder, waiting_BE), expected, 1e-3)
    assert_same(gradients(encoder, replayed.embed(texts)), expected, 1e-3)
    assert replayed._captures == 2


@gpu
@pytest.mark.parametrize("why", ["dropout", "full", "recomputed", "deterministic", "captures"])
def test_where_nothing_can_be_recorded_the_encoder_embeds_by_itself(
    why: str,
    make_encoder: MakeEncoder,
    batches: Callable[[Encoder], list[list[TokenIds]]],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO, logger=replay.__name__)
    encoder = make_encoder(dropout=0.1 if why == "dropout" else 0.0, method="full" if why == "full" else "lora")
    if why == "recomputed":
        recompute_layers(encoder.backbone)
    if why == "captures":
        monkeypatch.setattr(replay, "MAX_CAPTURES", 0)
    replayed, texts = Replay(encoder), batches(encoder)[0]
    with same_bits(why == "deterministic"):
        assert len(gradients(encoder, replayed.embed(texts))) > 0
        assert len(gradients(encoder, replayed.embed(texts))) > 0
    assert replayed._captures == 0
    assert [record.message.startswith("training steps run without CUDA graphs") for record in caplog.records] == [True]


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_without_a_gpu_the_encoder_embeds_by_itself(
    make_encoder: MakeEncoder,
    batches: Callable[[Encoder], list[list[TokenIds]]],
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO, logger=replay.__name__)
    encoder = make_encoder()
    replayed, texts = Replay(encoder), batches(encoder)[0]
    expected = gradients(encoder, encoder.embed(texts))
    for _ in range(2):
        for ours, theirs in zip(gradients(encoder, replayed.embed(texts)), expected, strict=True):
            assert torch.equal(ours, theirs)
    assert [record.message for record in caplog.records] == [
        "training steps run without CUDA graphs, because the device is cpu"
    ]
