"""A packed batch of fixed size embeds, and is attended to, as the texts put into it would be by themselves."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from embedtune.config import AdapterConfig, ModelConfig
from embedtune.kernels.attention import packed_layout, reference, tiles
from embedtune.kernels.attention.tiles import Blocks, Table
from embedtune.models.adapters import make_trainable
from embedtune.models.fixed_batch import FixedBatch, fill_up, room_for, room_for_tokens
from embedtune.models.load import load_encoder
from embedtune.models.packing import TokenIds

CPU = torch.device("cpu")
TABLES = (
    Table({16: Blocks(16, 1), 32: Blocks(16, 1)}, (32, Blocks(16, 4))),
    Table({16: Blocks(16, 1)}, (16, Blocks(16, 1))),
)
DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")


def texts_of(*lengths: int) -> list[TokenIds]:
    rng = np.random.default_rng(sum(lengths))
    return [rng.integers(1, 30, length).astype(np.int32) for length in lengths]


FIRST = texts_of(40, 3, 17, 1, 20, 33, 8)
SECOND = texts_of(5, 41, 2, 2, 18, 49)


def fixed(texts: list[TokenIds], device: torch.device = CPU) -> FixedBatch:
    filled = fill_up(texts, TABLES, position_offset=0)
    return FixedBatch(room_for(filled), filled, TABLES, device)


@pytest.mark.parametrize("tokens", [1, 63, 64, 65, 1023, 1024, 5000, 85_591, 131_072])
def test_rooms_for_tokens_are_few_and_little_is_left_of_them(tokens: int) -> None:
    room = room_for_tokens(tokens)
    assert tokens <= room <= max(tokens * 17 / 16, tokens + 63)
    assert room_for_tokens(room) == room
    assert len({room_for_tokens(n) for n in range(64_000, 128_001)}) <= 17


def test_a_batch_is_embedded_as_the_encoder_does(st_folder: Path, sentences: list[str]) -> None:
    encoder = load_encoder(ModelConfig(base=str(st_folder), device="cpu", precision="fp32"))
    torch.manual_seed(0)
    make_trainable(encoder, AdapterConfig(rank=4))
    with torch.no_grad():
        for parameter in encoder.parameters():
            if parameter.requires_grad:
                parameter.normal_(std=0.05)
    table = encoder.token_table(sentences[:12], "passage")
    texts = [table[number] for number in range(12)]
    filled = fill_up(texts, TABLES, position_offset=encoder.position_offset)
    batch = FixedBatch(room_for(filled), filled, TABLES, CPU)

    def gradients(embed: Callable[[], Tensor]) -> list[Tensor]:
        encoder.zero_grad()
        out_BE = torch.nn.functional.normalize(embed()[:12], dim=-1)
        (out_BE @ out_BE.roll(1, 0).T).logsumexp(1).mean().backward()  # type: ignore[no-untyped-call]
        return [out_BE.detach(), *(p.grad.clone() for p in encoder.parameters() if p.grad is not None)]

    expected = gradients(lambda: encoder.embed(texts))
    actual = gradients(lambda: encoder.embed_packed(batch.packed()))
    assert len(actual) > 12
    for ours, theirs in zip(actual, expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-6)


def test_another_batch_takes_the_place_of_the_first() -> None:
    batch, second = fixed(FIRST), fill_up(SECOND, TABLES, position_offset=0)
    assert batch.holds(second)
    batch.put(second)
    packed, expected = batch.packed(), FixedBatch(batch.room, second, TABLES, CPU).packed()
    for name in ("input_ids_1T", "position_ids_1T", "restore_B"):
        assert torch.equal(getattr(packed, name), getattr(expected, name)), name
    places_B = packed.layout.cu_seqlens[packed.restore_B[: len(SECOND)].long()].long()
    assert packed.input_ids_1T[0, places_B].tolist() == [int(text[0]) for text in SECOND]


def test_what_does_not_fit_is_not_held() -> None:
    batch = fixed(FIRST)
    assert not batch.holds(fill_up(texts_of(129), TABLES, position_offset=0))  # of another size
    assert not batch.holds(fill_up(texts_of(*[1] * 122), TABLES, position_offset=0))  # too many texts
    assert not batch.holds(fill_up(texts_of(*[1] * 80, 48), TABLES, position_offset=0))  # too many tiles of a kind


def test_attention_is_that_of_the_batch_last_put(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("triton")
    from embedtune.kernels.attention import triton as fast

    monkeypatch.setattr(fast, "tables", lambda *_: TABLES)
    batch, second = fixed(FIRST, DEVICE), fill_up(SECOND, TABLES, position_offset=0)
    batch.put(second)
    generator = torch.Generator().manual_seed(0)
    given = [torch.randn(batch.room.tokens, 2, 16, generator=generator) for _ in range(4)]
    lengths = second.arranged.lengths_B.tolist()
    expected = run(reference.packed_attention, given, packed_layout(lengths))
    actual = run(fast.packed_attention, [x.to(DEVICE) for x in given], batch.packed().layout)
    for ours, theirs in zip(actual, expected, strict=True):
        torch.testing.assert_close(ours.cpu(), theirs, rtol=1e-4, atol=1e-5)


def run(attend: Callable[..., Tensor], given: list[Tensor], layout: object) -> list[Tensor]:
    *inputs, grad = [x.clone().requires_grad_() for x in given[:3]] + given[3:]
    out_THD = attend(*inputs, layout, scale=0.25)
    return [out_THD.detach(), *torch.autograd.grad(out_THD, inputs, grad)]


def test_tiles_are_kept_for_each_table() -> None:
    layout = fixed(FIRST).packed().layout
    for table in TABLES:
        assert [part.size for part in tiles.cut(layout, table)] == [*table.whole, table.cut[0]]
