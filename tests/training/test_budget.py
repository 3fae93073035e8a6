"""How many tokens are found to fit, against what they turn out to take."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from peft import PeftModel

from embedtune.data.collection import Pairs
from embedtune.data.tokens import TokenTable
from embedtune.models.encoder import Encoder
from embedtune.models.memory import peak_bytes
from embedtune.training import budget
from embedtune.training.budget import choose_micro_batch
from embedtune.training.microbatch import MIN_TOKENS

Load = Callable[..., Encoder]
Adapt = Callable[..., PeftModel]

PAIRS = Pairs(
    query_ids=np.arange(40),
    passage_ids=np.arange(40),
    negative_ids=((3, 4), *((),) * 39),
    row_ids=tuple(map(str, range(40))),
)


@pytest.fixture
def free(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    """Sets the memory that is free."""
    return lambda count: monkeypatch.setattr(budget, "free_bytes", lambda device: count)


@pytest.fixture
def texts(sentences: list[str], st_folder: Path, load: Load) -> tuple[TokenTable, TokenTable]:
    encoder = load(st_folder)
    return encoder.token_table(sentences[:40], "query"), encoder.token_table(sentences[100:140], "passage")


@pytest.mark.parametrize("recompute", [False, True])
def test_what_is_found_to_fit_fits_and_fills_the_memory(
    recompute: bool,
    texts: tuple[TokenTable, TokenTable],
    st_folder: Path,
    load: Load,
    adapt: Adapt,
    free: Callable[[int], None],
) -> None:
    encoder = load(st_folder)
    adapt(encoder, dropout=0.1)
    if recompute:
        encoder.activation_checkpointing_enable()
    encoder.train()
    free(64 * 2**20)
    room = 64 * 2**20 * budget.SHARE_OF_MEMORY["cpu"]
    text = max((texts[1][row] for row in range(40)), key=len)
    count = choose_micro_batch(encoder, PAIRS, *texts, largest=1) // len(text)

    def step(size: int) -> int:
        return peak_bytes(lambda: encoder.embed([text] * size).sum().backward())  # type: ignore[no-untyped-call]

    assert count > 20
    assert 0.8 * room < step(count) - step(1) < 1.05 * room


def test_looking_for_it_leaves_no_trace(
    texts: tuple[TokenTable, TokenTable], st_folder: Path, load: Load, adapt: Adapt
) -> None:
    encoder = load(st_folder)
    adapt(encoder, dropout=0.1)
    encoder.eval()
    torch.manual_seed(3)
    expected = torch.rand(3)
    torch.manual_seed(3)
    assert choose_micro_batch(encoder, PAIRS, *texts, largest=1) > 10_000
    assert torch.equal(torch.rand(3), expected)
    assert not encoder.training
    assert all(parameter.grad is None for parameter in encoder.parameters())


def test_there_is_always_room_for_a_few_tokens(
    texts: tuple[TokenTable, TokenTable], st_folder: Path, load: Load, adapt: Adapt, free: Callable[[int], None]
) -> None:
    encoder = load(st_folder)
    adapt(encoder)
    free(0)
    assert choose_micro_batch(encoder, PAIRS, *texts, largest=1) == MIN_TOKENS


def test_what_is_freed_meanwhile_is_not_taken_for_room(
    texts: tuple[TokenTable, TokenTable],
    st_folder: Path,
    load: Load,
    adapt: Adapt,
    free: Callable[[int], None],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    encoder = load(st_folder)
    adapt(encoder)
    free(64 * 2**20)
    monkeypatch.setattr(budget, "peak_bytes", lambda step, device: 0)
    most = budget.SHARE_OF_MEMORY["cpu"] * 64 * 2**20 / (4 * encoder.width)
    assert MIN_TOKENS < choose_micro_batch(encoder, PAIRS, *texts, largest=1) <= most


def test_long_texts_are_measured_in_part(
    texts: tuple[TokenTable, TokenTable],
    st_folder: Path,
    load: Load,
    adapt: Adapt,
    free: Callable[[int], None],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """What texts of 60 tokens take is inferred from texts of 16 and 32 as well as it is measured."""
    encoder = load(st_folder, max_length=60)
    adapt(encoder)
    free(64 * 2**20)
    flat_T = np.resize(texts[1].flat_T, 60 * 40)
    table = TokenTable(flat_T, np.arange(0, 60 * 41, 60), 0)
    measured = choose_micro_batch(encoder, PAIRS, texts[0], table, largest=1)
    monkeypatch.setattr(budget, "MEASURED_LENGTH", 32)
    assert choose_micro_batch(encoder, PAIRS, texts[0], table, largest=1) == pytest.approx(measured, rel=0.05)


def test_where_a_batch_does_not_fit_not_all_the_memory_is_taken(
    texts: tuple[TokenTable, TokenTable], st_folder: Path, load: Load, adapt: Adapt, monkeypatch: pytest.MonkeyPatch
) -> None:
    encoder = load(st_folder)
    adapt(encoder)
    fitting = choose_micro_batch(encoder, PAIRS, *texts, largest=1)
    enough = budget.ENOUGH_TOKENS["cpu"]
    assert fitting > 2 * enough
    assert choose_micro_batch(encoder, PAIRS, *texts, largest=2 * fitting) == enough
    monkeypatch.setattr(budget, "free_bytes", lambda device: 2**23)
    assert choose_micro_batch(encoder, PAIRS, *texts, largest=2 * fitting) < enough
