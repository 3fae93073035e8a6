"""Both sides do the same work on the same batches; where they don't, no ratio is given.

The sides run in this process, on a tiny model without dropout; `python -m benchmarks.train` gives each its own process.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks import ours, peer
from benchmarks.agreement import Compared, compare
from benchmarks.batches import build_batches, read_batches, write_batches
from benchmarks.hardware import cpu_facts
from benchmarks.inputs import base_model
from benchmarks.jobs import OURS, EncodeJob, Ours, TrainJob
from benchmarks.records import Agreement, GemmRates, TrainMeasurement, Workload
from benchmarks.sizes import SHAPES, SIZES
from benchmarks.steps import run_steps
from benchmarks.summary import summarize_train, train_ratios
from benchmarks.workload import count_work, training_flops
from embedtune.errors import DataError
from embedtune.models.encoder import Encoder
from embedtune.training.checkpoint import Progress
from embedtune.training.contrastive import ContrastiveObjective

BATCH, STEPS = 8, 3

WORK = Workload(pairs=20, tokens=1000, padding=0.5, flops=400.0, feed_forward=(1, 1, 1))
GEMM = GemmRates(shape=(1, 1, 1), fp32=1000.0, bf16=2000.0, square_fp32=2000.0, square_bf16=4000.0, best_squares=(1, 1))

needs_no_warnings = pytest.mark.filterwarnings("ignore")
"""Sentence Transformers' trainer warns of things in the libraries under it."""


def agreed(one: Agreement, other: Agreement) -> Compared:
    (found,) = compare([one, other])
    assert found.agree, found.said
    return found


def measured(runner: str, seconds: float) -> TrainMeasurement:
    """Two timed steps."""
    return TrainMeasurement(
        runner=runner,
        precision="fp32",
        step_seconds=[seconds, seconds],
        data_seconds=seconds,
        loaded_bytes=100,
        peak_bytes=300,
        mean_loss=0.5,
        weights="fp32",
    )


@pytest.fixture(scope="module")
def base(
    make_checkpoint: Callable[..., Path], make_st_folder: Callable[..., Path], bert_config: dict[str, int]
) -> Path:
    """A tiny BERT without dropout."""
    from transformers import BertConfig

    config = BertConfig.from_dict({**bert_config, "hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0})
    return make_st_folder(make_checkpoint(config), prompts={"query": "bador: "})


@pytest.fixture
def wide_base(
    make_checkpoint: Callable[..., Path], make_st_folder: Callable[..., Path], bert_config: dict[str, int]
) -> Path:
    """The same with rows of whole blocks of 64: bitsandbytes (0.50), which the peer computes with, misreads others on a
    CPU with AVX-512."""
    from transformers import BertConfig

    sizes = {"hidden_size": 64, "intermediate_size": 128}
    dropout = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    return make_st_folder(make_checkpoint(BertConfig.from_dict({**bert_config, **sizes, **dropout})))


@pytest.fixture
def job(base: Path, pairs_file: Path, tmp_path: Path) -> TrainJob:
    path = tmp_path / "batches.jsonl"
    write_batches(build_batches(str(pairs_file), batch_size=BATCH, count=STEPS + 1, seed=0), path)
    return TrainJob(
        base=str(base),
        batches=str(path),
        batch_size=BATCH,
        max_length=24,
        method="lora",
        rank=4,
        alpha=8.0,
        device="cpu",
        lr=2e-3,
        schedule="constant",
        warmup_fraction=0.0,
        weight_decay=0.01,
        scale=20.0,
        seed=0,
    )


def test_batches_are_full_and_free_of_repetitions(pairs_file: Path, tmp_path: Path) -> None:
    batches = build_batches(str(pairs_file), batch_size=10, count=9, seed=0)
    for batch in batches:
        anchors, positives = zip(*batch, strict=True)
        assert len(set(anchors)) == len(set(positives)) == 10
    write_batches(batches, tmp_path / "batches.jsonl")
    assert read_batches(tmp_path / "batches.jsonl") == batches


def test_pairs_come_again_in_another_order(pairs_file: Path) -> None:
    batches = build_batches(str(pairs_file), batch_size=10, count=30, seed=0)
    assert len({pair for batch in batches for pair in batch}) <= 100
    assert len(set(map(tuple, batches))) == 30


def test_too_few_pairs_are_refused(pairs_file: Path) -> None:
    with pytest.raises(DataError, match="100 pairs give no batch of 101"):
        build_batches(str(pairs_file), batch_size=101, count=1, seed=0)


@needs_no_warnings
def test_the_sides_agree_before_training_and_after(job: TrainJob, tmp_path: Path) -> None:
    """Same loss and embeddings with a random adapter, and the same mean loss over a few real steps."""
    first = ours.agree_train("embedtune-fp32", job, tmp_path / "ours.npy")
    second = peer.agree_train("st-fp32", job, tmp_path / "peer.npy")
    assert agreed(first, second).said.startswith("cosine at least 1.0000")
    assert first.weights == second.weights == "fp32, trained ones in fp32"

    one, other = ours.time_train("embedtune-fp32", job), peer.time_train("st-fp32", job)
    assert len(one.step_seconds) == len(other.step_seconds) == STEPS
    assert one.mean_loss == pytest.approx(other.mean_loss, rel=1e-4)
    # Linux counts resident memory in batches of pages, and some may be given back after it was read.
    assert all(m.peak_bytes > 0.9 * m.loaded_bytes > 0 for m in (one, other))


@needs_no_warnings
def test_who_caches_gradients_trains_the_same(job: TrainJob, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from sentence_transformers.sentence_transformer.losses import CachedMultipleNegativesRankingLoss

    sizes: list[int] = []

    def noted(model: Any, *, scale: float, mini_batch_size: int) -> CachedMultipleNegativesRankingLoss:
        sizes.append(mini_batch_size)
        return CachedMultipleNegativesRankingLoss(model, scale=scale, mini_batch_size=mini_batch_size)

    monkeypatch.setattr(peer, "CachedMultipleNegativesRankingLoss", noted)
    in_parts = replace(job, mini_batch=3)
    first = ours.agree_train("embedtune-fp32", in_parts, tmp_path / "ours.npy")
    second = peer.agree_train("st-fp32", in_parts, tmp_path / "peer.npy")
    assert agreed(first, second).said.startswith("cosine at least 1.0000")
    monkeypatch.setitem(OURS, "embedtune-cached", Ours(precision="fp32", cached=True))
    budgets: list[int] = []

    def watched(encoder: Encoder, objective: ContrastiveObjective, *rest: Any, **options: Any) -> Progress:
        assert objective.micro_batch.tokens is not None
        budgets.append(objective.micro_batch.tokens)
        return run_steps(encoder, objective, *rest, **options)

    monkeypatch.setattr(ours, "run_steps", watched)
    cached, whole = (ours.time_train(runner, in_parts) for runner in ("embedtune-cached", "embedtune-fp32"))
    assert cached.mean_loss == pytest.approx(whole.mean_loss, rel=1e-5)
    assert first.tokens is not None
    assert budgets[0] < first.tokens < budgets[1]
    assert peer.time_train("st-fp32", in_parts).mean_loss == pytest.approx(
        peer.time_train("st-fp32", job).mean_loss, rel=1e-5
    )
    assert sizes == [3, 3]


@needs_no_warnings
def test_another_scaling_of_the_adapter_is_noticed(job: TrainJob, tmp_path: Path) -> None:
    first = ours.agree_train("embedtune-fp32", job, tmp_path / "ours.npy")
    second = peer.agree_train("st-fp32", replace(job, alpha=job.alpha * 8), tmp_path / "peer.npy")
    (found,) = compare([first, second])
    assert (found.one, found.other, found.agree) == ("embedtune-fp32", "st-fp32", False)
    assert "embeddings: cosine" in found.said


@needs_no_warnings
def test_bases_in_four_bits_agree_too(job: TrainJob, wide_base: Path, tmp_path: Path) -> None:
    pytest.importorskip("bitsandbytes")
    job = replace(job, method="qlora", base=str(wide_base))
    low = ours.agree_train("embedtune-low", job, tmp_path / "low.npy")
    first = ours.agree_train("embedtune-fp32", job, tmp_path / "ours.npy")
    second = peer.agree_train("st-fp32", job, tmp_path / "peer.npy")
    assert agreed(first, second).said.startswith("cosine at least 1.0000")
    assert agreed(first, low).agree
    assert first.weights == "nf4 and fp32 with a fp32 copy, trained ones in fp32"
    assert second.weights == "nf4 and fp32, trained ones in fp32"
    assert low.weights is not None
    assert low.weights.startswith("nf4 and ")
    assert "copy" not in low.weights  # its precision is the machine's choice
    assert peer.time_train("st-fp32", job).mean_loss == pytest.approx(
        ours.time_train("embedtune-fp32", job).mean_loss, rel=1e-4
    )


@needs_no_warnings
def test_random_weights_agree_too(
    job: TrainJob, bare_folder: Path, bert_config: dict[str, Any], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    from transformers import BertConfig

    monkeypatch.setitem(SIZES, SHAPES["bert-base"], lambda: BertConfig(**bert_config))
    made = base_model(str(bare_folder), "bert-base", demo=False, folder=tmp_path, seed=0)
    job = replace(job, base=made)
    first = ours.agree_train("embedtune-fp32", job, tmp_path / "ours.npy")
    second = peer.agree_train("st-fp32", job, tmp_path / "peer.npy")
    assert agreed(first, second).said.startswith("cosine at least 1.0000")


@needs_no_warnings
def test_the_sides_encode_alike(base: Path, sentences: list[str], tmp_path: Path) -> None:
    job = EncodeJob(base=str(base), texts="", max_length=24, device="cpu")
    found = [
        side.agree_encode(runner, job, sentences[:20], tmp_path / f"{runner}.npy")
        for side, runner in ((ours, "embedtune-fp32"), (peer, "st-fp32"), (peer, "st-bf16"))
    ]
    assert [(c.one, c.other, c.agree) for c in compare(found)] == [
        ("embedtune-fp32", "st-fp32", True),
        ("embedtune-fp32", "st-bf16", True),
    ]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"loss": 1.01}, "loss: 1.000000 and 1.010000"),
        ({"loss": float("nan")}, "loss"),
        ({"tokens": 99}, "tokens: 100 and 99"),
        ({"trainable_parameters": 7}, "trainable parameters: 8 and 7"),
    ],
)
def test_each_disagreement_is_named(change: dict[str, Any], said: str, tmp_path: Path) -> None:
    np.save(tmp_path / "same.npy", np.eye(3, dtype=np.float32))
    one = Agreement(
        runner="embedtune",
        precision="fp32",
        embeddings=str(tmp_path / "same.npy"),
        loss=1.0,
        tokens=100,
        trainable_parameters=8,
    )
    (found,) = compare([one, replace(one, runner="st-fp32", **change)])
    assert not found.agree
    assert found.said.startswith(said)


def test_half_precision_may_differ_more_and_four_bits_more_still(tmp_path: Path) -> None:
    np.save(tmp_path / "same.npy", np.eye(3, dtype=np.float32))
    one = Agreement(runner="embedtune", precision="bf16", embeddings=str(tmp_path / "same.npy"), loss=1.0)
    agreed(one, replace(one, runner="st-fp32", precision="fp32", loss=1.01))
    far = replace(one, runner="st-bf16", loss=1.04)
    assert not compare([one, far])[0].agree
    agreed(replace(one, weights="nf4 and bf16"), replace(far, weights="nf4 and fp32"))


def test_ratios_are_taken_within_a_round() -> None:
    """A machine that is half as fast in the second round changes the rates, not their ratio."""
    names = {"embedtune": 1.0, "st-fp32": 3.0}
    rounds = [{name: measured(name, seconds * slow) for name, seconds in names.items()} for slow in (1.0, 2.0, 1.0)]
    compared = train_ratios(rounds)
    assert compared == {"embedtune": {"st-fp32": compared["embedtune"]["st-fp32"]}}
    assert vars(compared["embedtune"]["st-fp32"]) == pytest.approx({"median": 3, "lowest": 3, "highest": 3})
    assert train_ratios(rounds, refused=[frozenset(("st-fp32", "embedtune"))]) == {}

    summary = summarize_train(rounds, WORK, [GEMM] * 3)["embedtune"]
    assert (summary.pairs_per_second, summary.tokens_per_second) == (10, 500)
    assert (summary.pairs_per_second_with_data, summary.step_seconds) == (5, 1)
    assert (summary.flop_utilisation, summary.gemm_share, summary.peak_above_loaded_bytes) == (0.1, 0.2, 200)


def test_one_step_that_stalls_is_not_a_ratio() -> None:
    """Each step is of another batch, so it is compared with the peer's step of the same one."""
    ours = replace(measured("embedtune", 1.0), step_seconds=[1.0, 2.0, 4.0])
    peers = replace(measured("st-fp32", 1.0), step_seconds=[300.0, 6.0, 12.0])
    rounds = [{"embedtune": ours, "st-fp32": peers}]
    assert train_ratios(rounds)["embedtune"]["st-fp32"].median == 3
    assert summarize_train(rounds, WORK, [GEMM])["st-fp32"].pairs_per_second == WORK.pairs / 36


def test_a_runner_that_failed_keeps_the_rounds_it_finished() -> None:
    rounds = [{"embedtune": measured("embedtune", 1.0), "st-fp32": measured("st-fp32", 3.0)}]
    rounds.append({"embedtune": measured("embedtune", 5.0)})
    compared = train_ratios(rounds)["embedtune"]["st-fp32"]
    assert compared.median == pytest.approx(3)
    summaries = summarize_train(rounds, WORK, [GEMM] * 2)
    assert (summaries["embedtune"].step_seconds, summaries["st-fp32"].step_seconds) == (3, 3)


def test_operations_are_counted_as_documented(base: Path, load: Callable[..., Encoder]) -> None:
    encoder = load(base, max_length=24)
    layer_weights = 4 * 32 * 32 + 2 * 32 * 64
    layer_adapter = 2 * (4 * (32 + 32) + 2 * (32 + 64))
    expected = 2 * ((4 * layer_weights + 6 * layer_adapter) * 7 + 12 * 32 * (3**2 + 4**2))
    assert training_flops(encoder.backbone, np.array([3, 4]), rank=2) == expected

    work = count_work(encoder, [[("ba", "nop nop"), ("ba", "nop nop")]], rank=2)
    texts = encoder.tokenizer(["ba", "nop nop"]).input_ids
    assert (work.pairs, work.tokens, work.padding) == (2, 2 * sum(map(len, texts)), 0)
    assert work.feed_forward == (work.tokens, 32, 64)


def test_cpu_facts_are_read() -> None:
    text = (
        "processor\t: 0\nmodel name\t: Some CPU\nflags\t\t: fpu avx2 amx_bf16\n\nprocessor\t: 1\nmodel name\t: Other\n"
    )
    assert cpu_facts(text) == {"model": "Some CPU", "flags": ["avx2", "amx_bf16"]}
    assert cpu_facts("") == {"model": "", "flags": []}
