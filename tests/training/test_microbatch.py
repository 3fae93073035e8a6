"""Gradients through micro-batches against those of one pass, what they hold, and what happens without memory."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from peft import PeftModel
from torch import Tensor

from embedtune.config import AdapterConfig
from embedtune.errors import RunError
from embedtune.models.adapters import make_trainable
from embedtune.models.encoder import Encoder
from embedtune.models.memory import peak_bytes
from embedtune.models.packing import TokenIds, cut
from embedtune.training import microbatch
from embedtune.training.microbatch import MicroBatch, embed_batch
from embedtune.training.random_state import random_state, restore_random_state

Load = Callable[..., Encoder]
Adapt = Callable[..., PeftModel]

TOKENS = (1, 40, 100, 333, 999)
"""One text at a time, odd sizes, and nearly all 1,040 tokens of the texts at once."""


@pytest.fixture(scope="module")
def texts(sentences: list[str], st_folder: Path, load: Load) -> list[TokenIds]:
    table = load(st_folder).token_table(sentences[100:140], "passage")
    return [table[row] for row in range(40)]


@pytest.fixture
def make(st_folder: Path, load: Load, adapt: Adapt) -> Callable[..., Encoder]:
    """An encoder made trainable by one of `WAYS`, in training mode."""

    def make(way: str) -> Encoder:
        adapter, options = WAYS[way]
        encoder = load(st_folder, **options)
        if adapter.get("method") == "full":
            make_trainable(encoder, AdapterConfig(**adapter))
        else:
            adapt(encoder, **adapter)
        if way == "layers recomputed":
            encoder.activation_checkpointing_enable()
        if way == "padded":
            encoder.backbone.set_attn_implementation("sdpa")
            encoder.packed = False
        return encoder.train()

    return make


WAYS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "lora": ({}, {}),
    "padded": ({}, {}),
    "layers recomputed": ({}, {}),
    "dora": ({"dora": True}, {}),
    "qlora": ({"method": "qlora"}, {"four_bit": True}),
    "qlora, low memory": ({"method": "qlora"}, {"four_bit": True, "memory": "low"}),
    "full": ({"method": "full"}, {}),
    "full, bf16": ({"method": "full"}, {"precision": "bf16", "master_weights": True}),
}


def gradients(encoder: Encoder, embed: Callable[[], Tensor]) -> dict[str, Tensor]:
    """Of a loss in which every embedding depends on every other; what the encoder holds is taken away."""
    encoder.zero_grad()
    embeddings_BE = embed()
    scores_BB = embeddings_BE @ embeddings_BE.roll(1, 0).T
    scores_BB.mul(5).logsumexp(1).mean().mul(64).backward()  # type: ignore[no-untyped-call]
    found = {name: p.grad for name, p in encoder.named_parameters() if p.grad is not None}
    encoder.zero_grad()
    return found


def assert_same_gradients(found: dict[str, Tensor], wanted: dict[str, Tensor], tolerance: float) -> None:
    assert found.keys() == wanted.keys() != set()
    size = max(gradient.norm() for gradient in wanted.values())
    for name, gradient in wanted.items():  # that of a key's bias is zero but for rounding
        assert (found[name] - gradient).norm() <= tolerance * (gradient.norm() + 0.02 * size), name


@pytest.mark.parametrize("way", WAYS)
def test_gradients_are_those_of_one_pass(way: str, make: Callable[[str], Encoder], texts: list[TokenIds]) -> None:
    encoder = make(way)
    wanted = gradients(encoder, lambda: encoder.embed(texts))
    for tokens in TOKENS:
        size = MicroBatch(tokens)
        found = gradients(encoder, lambda size=size: embed_batch(encoder, texts, size))  # type: ignore[misc]
        assert size.largest <= max(tokens, size.longest)
        assert_same_gradients(found, wanted, 5e-2 if "bf16" in way else 1e-5)


@pytest.mark.parametrize("way", ["lora", "layers recomputed"])
def test_dropout_is_the_same_in_both_passes(
    way: str, make: Callable[[str], Encoder], texts: list[TokenIds], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As if the micro-batches had been embedded one after another with all they hold kept."""
    monkeypatch.setitem(WAYS, way, ({"dropout": 0.3}, {}))
    encoder = make(way)
    start = random_state()
    found = gradients(encoder, lambda: embed_batch(encoder, texts, MicroBatch(200)))
    after = torch.rand(3)
    restore_random_state(start)
    batches = microbatch._even_batches(np.array([len(ids) for ids in texts]), 200, padded=False)
    order = torch.from_numpy(np.argsort(np.concatenate(batches)))

    def all_kept() -> Tensor:
        return torch.cat([encoder.embed([texts[row] for row in rows]) for rows in batches])[order]

    wanted = gradients(encoder, all_kept)
    assert torch.equal(torch.rand(3), after)
    assert_same_gradients(found, wanted, 1e-5)
    other = gradients(encoder, lambda: embed_batch(encoder, texts, MicroBatch(200)))
    assert any((other[name] - wanted[name]).norm() > 0.1 * wanted[name].norm() for name in wanted)


def test_what_fits_goes_through_as_it_is(make: Callable[[str], Encoder], texts: list[TokenIds]) -> None:
    encoder = make("lora")
    expected_BE = encoder.embed(texts)
    for size in (MicroBatch(), MicroBatch(5_000)):
        embeddings_BE = embed_batch(encoder, texts, size)
        assert torch.equal(embeddings_BE, expected_BE)
        assert type(embeddings_BE.grad_fn) is type(expected_BE.grad_fn)
        assert size.largest == sum(map(len, texts))


@pytest.mark.parametrize("way", ["lora", "layers recomputed", "full", "dora", "qlora"])
def test_memory_grows_with_the_micro_batch_and_not_with_the_batch(
    way: str, make: Callable[[str], Encoder], texts: list[TokenIds]
) -> None:
    encoder = make(way)

    def peak(repeats: int, tokens: int | None) -> int:
        batch = texts * repeats
        return peak_bytes(lambda: gradients(encoder, lambda: embed_batch(encoder, batch, MicroBatch(tokens))))

    peak(1, None)  # what is made once
    small, large, whole = peak(2, 500), peak(8, 500), peak(8, None)
    scores_and_embeddings = 8 * 40 * (8 * 40 + 32) * 4 * 4
    assert large < small + scores_and_embeddings
    assert whole > large + 4 * scores_and_embeddings
    assert peak(8, 1000) > large + (large - peak(8, 250)) / 2


def test_micro_batches_are_few_full_and_even() -> None:
    generator = np.random.default_rng(0)
    lengths_B = generator.integers(1, 60, size=500)
    for padded in (False, True):
        for tokens in (60, 100, 1_000, 7_000, 20_000):
            batches = microbatch._even_batches(lengths_B, tokens, padded=padded)
            assert sorted(np.concatenate(batches)) == list(range(500))
            sizes = [microbatch._tokens(lengths_B[places], padded=padded) for places in batches]
            assert max(sizes) <= tokens
            assert len(batches) == len(cut(lengths_B, tokens, padded=padded))
            if not padded and tokens >= 1_000:
                assert min(sizes) > 0.8 * max(sizes)


def test_half_as_much_until_it_is_no_use(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(microbatch, "MIN_TOKENS", 100)
    size = MicroBatch(None, largest=1000, longest=130)
    assert size.shrink() == "memory ran out with 1,000 tokens at a time; the step is repeated with 500"
    assert size.tokens == 500
    size.largest = 140
    size.shrink()
    assert size.tokens == 130  # a text is never cut
    size.largest = 130
    with pytest.raises(
        RunError, match=r"with only 130 tokens at a time\.\nType one or more of:  --gradient-checkpoint"
    ):
        size.shrink()


def test_a_text_is_the_least_there_is() -> None:
    size = MicroBatch(10_000, largest=4_000, longest=4_000)
    with pytest.raises(RunError, match="--max-length"):
        size.shrink()
