"""What training must do on a GPU: wait for nothing, draw the same dropout twice, get by with the memory there is."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from embedtune.config import AdapterConfig, LossConfig, ModelConfig, TrainingConfig
from embedtune.data.collection import Collection, IdArray, Pairs
from embedtune.errors import RunError
from embedtune.losses.build import build_loss
from embedtune.models.adapters import make_trainable
from embedtune.models.encoder import Encoder
from embedtune.models.load import load_encoder
from embedtune.models.memory import free_bytes, peak_bytes
from embedtune.progress import SilentReporter
from embedtune.training import loop
from embedtune.training.budget import choose_micro_batch
from embedtune.training.checkpoint import Checkpoints
from embedtune.training.contrastive import ContrastiveObjective
from embedtune.training.loop import Trainer
from embedtune.training.microbatch import MicroBatch, embed_batch
from embedtune.training.plan import make_plan
from embedtune.training.random_state import same_bits
from embedtune.training.replay import Replay
from embedtune.training.selection import Measured
from embedtune.training.words import WordTeacher

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device"),
]
MakeEncoder = Callable[..., Encoder]
METHODS = ["lora", "full"]


@pytest.fixture
def make_encoder(st_folder: Path) -> MakeEncoder:
    def make(method: str, *, precision: str = "bf16", dropout: float = 0.0) -> Encoder:
        config = ModelConfig(base=str(st_folder), device="cuda", precision=precision)  # type: ignore[arg-type]
        adapter = AdapterConfig(method=method, dropout=dropout)  # type: ignore[arg-type]
        torch.manual_seed(0)
        encoder = load_encoder(config, master_weights=adapter.trains_weights)
        make_trainable(encoder, adapter)
        return encoder.train()

    return make


@pytest.fixture
def make_trainer(sentences: list[str], tmp_path: Path) -> Callable[..., Trainer]:
    """Half of each sentence asks for the other one."""

    def make(encoder: Encoder, *, tokens: int | None = None, batch_size: int = 32, **settings: Any) -> Trainer:
        words = [sentence.split() for sentence in sentences]
        rows = np.arange(len(words))
        pairs = Pairs(
            query_ids=rows, passage_ids=rows, negative_ids=((),) * len(rows), row_ids=tuple(map(str, rows.tolist()))
        )
        config = TrainingConfig(lr=1e-3, batch_size=batch_size, max_steps=8, eval_steps=4, **settings)
        size = MicroBatch(tokens)
        objective = ContrastiveObjective(
            encoder=encoder,
            pairs=pairs,
            qrels={row: {row: 1.0} for row in rows.tolist()},
            query_tokens=encoder.token_table([" ".join(w[::2]) for w in words], "query"),
            passage_tokens=encoder.token_table([" ".join(w[1::2]) for w in words], "passage"),
            loss=build_loss(LossConfig(both_directions=True)),
            micro_batch=size,
        )
        folder = tmp_path / f"{len(list(tmp_path.iterdir()))}"
        folder.mkdir()
        return Trainer(
            model=encoder,
            objective=objective,
            evaluate=lambda: Measured({config.metric: 0.0}),
            pairs=pairs,
            config=config,
            plan=make_plan(config, len(pairs)),
            seed=0,
            checkpoints=Checkpoints(folder / "checkpoints", keep_last=2),
            log_folder=folder,
            reporter=SilentReporter(),
            micro_batch=size,
        )

    return make


def holds(encoder: Encoder, tokens: int, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Let CUDA refuse memory where more tokens than that are embedded with activations; returns what was tried."""
    embed, tried = encoder.embed, list[int]()

    def embed_if_it_fits(texts: Sequence[Any]) -> Tensor:
        if torch.is_grad_enabled():
            tried.append(sum(map(len, texts)))
            if tried[-1] > tokens:
                torch.empty(2**42, dtype=torch.uint8, device="cuda")
        return embed(texts)

    monkeypatch.setattr(encoder, "embed", embed_if_it_fits)
    monkeypatch.setattr(Replay, "embed", lambda _, texts: encoder.embed(texts))  # graphs don't come by here
    return tried


@pytest.mark.filterwarnings("ignore:Synchronization debug mode is a prototype")
@pytest.mark.parametrize("taught", [False, True])
@pytest.mark.parametrize("tiled", [False, True])
@pytest.mark.parametrize("tokens", [None, 300])
@pytest.mark.parametrize("method", METHODS)
def test_no_step_waits_for_the_gpu(
    method: str,
    tokens: int | None,
    tiled: bool,
    taught: bool,
    make_encoder: MakeEncoder,
    make_trainer: Callable[..., Trainer],
    sentences: list[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """torch raises where an operation would wait; but for the first steps, which make what is kept."""
    if tiled:
        for module in ("tiled", "words"):
            monkeypatch.setattr(f"embedtune.losses.{module}.TILE_SCORES", 200)
    step: Any = Trainer._step
    watched: list[int] = []

    def watched_step(self: Trainer, state: Any) -> None:
        if state.progress.step < 2:
            step(self, state)
            return
        torch.cuda.set_sync_debug_mode("error")
        try:
            step(self, state)
        finally:
            torch.cuda.set_sync_debug_mode("default")
        watched.append(state.progress.step)

    monkeypatch.setattr(Trainer, "_step", watched_step)
    trainer = make_trainer(make_encoder(method, dropout=0.1 if method == "lora" else 0.0), tokens=tokens)
    assert isinstance(trainer.objective, ContrastiveObjective)
    if taught:
        halves = Collection(queries=[" ".join(s.split()[::2]) for s in sentences], passages=sentences)
        trainer.objective.words = WordTeacher(halves, trainer.pairs, np.arange(len(sentences)))
    trainer.run(resume=False)
    assert len(watched) == 6


def gradients(encoder: Encoder, embed: Callable[[], Tensor]) -> list[Tensor]:
    encoder.zero_grad()
    embeddings_BE = embed()
    (embeddings_BE @ embeddings_BE.roll(1, 0).T).mul(5).logsumexp(1).mean().backward()  # type: ignore[no-untyped-call]
    return [p.grad.clone() for p in encoder.parameters() if p.grad is not None]


@pytest.mark.parametrize(("precision", "tolerance"), [("fp32", 1e-4), ("bf16", 5e-2)])
@pytest.mark.parametrize("method", METHODS)
def test_gradients_are_those_of_one_pass(
    method: str, precision: str, tolerance: float, make_encoder: MakeEncoder, sentences: list[str]
) -> None:
    encoder = make_encoder(method, precision=precision)
    table = encoder.token_table(sentences[:50], "passage")
    texts = [table[row] for row in range(50)]
    wanted = gradients(encoder, lambda: encoder.embed(texts))
    found = gradients(encoder, lambda: embed_batch(encoder, texts, MicroBatch(200)))
    size = max(gradient.norm() for gradient in wanted)
    for one, other in zip(found, wanted, strict=True):
        assert (one - other).norm() <= tolerance * (other.norm() + 0.02 * size)


def test_dropout_is_the_same_in_both_passes(make_encoder: MakeEncoder, sentences: list[str]) -> None:
    """Two micro-batches, of two texts of one length, against the same two with all they hold kept."""
    encoder = make_encoder("lora", precision="fp32", dropout=0.5)
    text = encoder.token_table(sentences[29:30], "passage")[0]
    generator = torch.cuda.get_rng_state()
    found = gradients(encoder, lambda: embed_batch(encoder, [text] * 4, MicroBatch(2 * len(text))))
    torch.cuda.set_rng_state(generator)
    wanted = gradients(encoder, lambda: torch.cat([encoder.embed([text] * 2) for _ in range(2)]))
    for one, other in zip(found, wanted, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


def test_the_peak_that_is_counted_is_the_one_the_allocator_sees(
    make_encoder: MakeEncoder, sentences: list[str]
) -> None:
    encoder = make_encoder("lora")
    text = encoder.token_table(sentences[29:30], "passage")[0]

    def run(count: int) -> None:
        encoder.embed([text] * count).sum().backward()  # type: ignore[no-untyped-call]
        encoder.zero_grad()

    def allocated(count: int) -> int:
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        run(count)
        return torch.cuda.max_memory_allocated() - before

    run(2_000)
    counted = peak_bytes(lambda: run(4_000), encoder.device) - peak_bytes(lambda: run(2_000), encoder.device)
    assert counted == pytest.approx(allocated(4_000) - allocated(2_000), rel=0.1)


@pytest.mark.parametrize("method", METHODS)
def test_a_run_gets_by_with_the_memory_there_is(
    method: str,
    make_encoder: MakeEncoder,
    make_trainer: Callable[..., Trainer],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """It runs out in the one forward at first, and then in the backward pass that embeds again."""
    expected = make_trainer(make_encoder(method), batch_size=300).run(resume=False)
    encoder = make_encoder(method)
    tried = holds(encoder, 2_000, monkeypatch)
    progress = make_trainer(encoder, batch_size=300).run(resume=False)
    assert tried[0] > 6_000
    assert 2_000 < tried[1] < 5_000
    assert progress.micro_batch_tokens is not None
    assert progress.micro_batch_tokens <= 2_000
    assert progress.losses == pytest.approx(expected.losses, rel=0.05)


def test_without_any_memory_the_run_says_what_to_type(
    make_encoder: MakeEncoder, make_trainer: Callable[..., Trainer], monkeypatch: pytest.MonkeyPatch
) -> None:
    encoder = make_encoder("lora")
    holds(encoder, 0, monkeypatch)
    with pytest.raises(RunError, match="--gradient-checkpointing"):
        make_trainer(encoder).run(resume=False)


def test_embedding_gets_by_with_the_memory_there_is(
    make_encoder: MakeEncoder, sentences: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    encoder = make_encoder("lora")
    table = encoder.token_table(sentences, "passage")
    expected_NE = encoder.embed_all(table)
    embed, sizes = encoder.embed, list[int]()

    def embed_if_it_fits(texts: Sequence[Any]) -> Tensor:
        sizes.append(sum(map(len, texts)))
        if sizes[-1] > 3_000:
            torch.empty(2**42, dtype=torch.uint8, device="cuda")
        return embed(texts)

    monkeypatch.setattr(encoder, "embed", embed_if_it_fits)
    torch.testing.assert_close(encoder.embed_all(table), expected_NE, rtol=0, atol=2e-2)
    assert sizes[0] > 3_000 >= sizes[-1]


def test_what_is_found_to_fit_is_a_share_of_the_gpu(make_encoder: MakeEncoder, sentences: list[str]) -> None:
    encoder = make_encoder("lora")
    rows = np.arange(50)
    pairs = Pairs(query_ids=rows, passage_ids=rows, negative_ids=((),) * 50, row_ids=tuple(map(str, rows)))
    table = encoder.token_table(sentences[:50], "passage")
    free = free_bytes(torch.device("cuda"))
    assert 2**30 < free <= torch.cuda.get_device_properties(0).total_memory
    assert 1_000 < free / choose_micro_batch(encoder, pairs, table, table, largest=1) < 100_000


def test_a_bad_loss_is_found_a_step_late_and_nothing_of_it_is_saved(
    make_encoder: MakeEncoder, make_trainer: Callable[..., Trainer]
) -> None:
    trainer = make_trainer(make_encoder("lora"))
    objective, calls = trainer.objective, iter(range(1, 100))

    def sometimes_bad(rows: IdArray) -> tuple[Tensor, int]:
        loss, tokens = objective(rows)
        return loss * (float("nan") if next(calls) == 4 else 1), tokens

    assert loop.UNREAD_STEPS["cuda"] == 1
    with pytest.raises(RunError, match=r"the loss became nan at step 4 .*the last good checkpoint is step 0\."):
        replace(trainer, objective=sometimes_bad).run(resume=False)
    assert all(parameter.isfinite().all() for parameter in trainer.model.parameters())


@pytest.mark.parametrize("method", METHODS)
def test_with_the_same_bits_a_resumed_run_ends_like_one_never_stopped(
    method: str, make_encoder: MakeEncoder, make_trainer: Callable[..., Trainer]
) -> None:
    """In fp16, so that the scale of the loss has to come back too."""
    with same_bits(True):
        whole = make_trainer(make_encoder(method, precision="fp16", dropout=0.1 if method == "lora" else 0.0))
        expected = replace(whole, mixed_precision="fp16").run(resume=False)
        stopped = make_trainer(make_encoder(method, precision="fp16", dropout=0.1 if method == "lora" else 0.0))
        objective, calls = stopped.objective, iter(range(1, 100))

        def dies(rows: IdArray) -> tuple[Tensor, int]:
            if next(calls) == 7:
                raise KeyboardInterrupt
            return objective(rows)

        with pytest.raises(KeyboardInterrupt):
            replace(stopped, objective=dies, mixed_precision="fp16").run(resume=False)
        resumed = replace(stopped, mixed_precision="fp16").run(resume=True)
    assert resumed.losses == expected.losses
    for one, other in zip(whole.model.parameters(), stopped.model.parameters(), strict=True):
        assert torch.equal(one, other)
