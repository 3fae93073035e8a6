"""What runs are made of: load, tokenise, evaluate, train. The command line and Python share these calls."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
from torch import Tensor

from embedtune.config import LossConfig, ModelConfig, TrainingConfig
from embedtune.data.batches import epoch_batches
from embedtune.data.collection import Collection
from embedtune.data.prepare import Splits
from embedtune.data.tokens import TokenTable
from embedtune.evaluation.run import Evaluation, RetrievalTask, evaluate_embeddings, retrieval_task
from embedtune.evaluation.run import evaluate_bm25 as search_by_word
from embedtune.models.encoder import Encoder
from embedtune.models.load import load_encoder
from embedtune.progress import Reporter, SilentReporter
from embedtune.training.budget import choose_micro_batch
from embedtune.training.checkpoint import Checkpoints
from embedtune.training.contrastive import ContrastiveObjective, batch_tokens
from embedtune.training.loop import Trainer
from embedtune.training.microbatch import MicroBatch
from embedtune.training.plan import Plan, make_plan


@dataclass(frozen=True)
class Texts:
    """Every text of a collection as token ids."""

    queries: TokenTable
    passages: TokenTable


class Embedded(NamedTuple):
    """Normalised embeddings of a task's queries (Q, E) and of its corpus (D, E), in the task's order."""

    queries_QE: Tensor
    corpus_DE: Tensor


def load(model: ModelConfig, reporter: Reporter, *, four_bit: bool = False, master_weights: bool = False) -> Encoder:
    """The encoder, told about; arguments are those of `load_encoder`.

    Raises:
        ModelError: the model, the device or the precision can't be used.
    """
    encoder = load_encoder(model, four_bit=four_bit, master_weights=master_weights)
    execution = "packed, nothing padded" if encoder.packed else "padded"
    precision = f"{encoder.source.precision} ({encoder.precision_reason})"
    reporter.note(f"{model.base} on {encoder.device.type} in {precision}; {execution}")
    if encoder.prompt("query") or encoder.prompt("passage"):
        reporter.note(f"prompts: query {encoder.prompt('query')!r}, passage {encoder.prompt('passage')!r}")
    for note in encoder.notes:
        reporter.warn(note)
    return encoder


def tokenize(encoder: Encoder, collection: Collection, reporter: Reporter | None = None) -> Texts:
    """All queries and passages of the collection, each with its role's prompt."""
    texts = Texts(
        queries=encoder.token_table(collection.queries, "query"),
        passages=encoder.token_table(collection.passages, "passage"),
    )
    if texts.passages.truncated and reporter is not None:
        reporter.warn(
            f"{texts.passages.truncated:,} of {len(texts.passages):,} passages are longer than "
            f"{encoder.max_length} tokens; what lies behind is not read (--max-length)"
        )
    return texts


def report_splits(splits: Splits, reporter: Reporter) -> None:
    """What was read, how it was split, and what was not used."""
    for note in splits.notes:
        reporter.note(note)
    for warning in splits.warnings:
        reporter.warn(warning)
    reporter.note(
        f"{len(splits.train):,} pairs to train on, {len(splits.dev):,} to choose the checkpoint on, "
        f"{len(splits.test):,} to test on; {len(splits.collection.passages):,} distinct passages"
    )
    dropped = [f"{count:,} {reason.replace('_', ' ')}" for reason, count in splits.dropped.items() if count]
    if dropped:
        reporter.note("not used: " + ", ".join(dropped))


def held_out_task(splits: Splits) -> RetrievalTask:
    """The questions of the test split, asked of every passage there is."""
    return retrieval_task(splits.collection, splits.test.query_ids, np.arange(len(splits.collection.passages)))


def dev_task(splits: Splits, *, size: int, seed: int) -> RetrievalTask:
    """The questions of the dev split, asked of its passages and of as many others as make up `size`.

    Without the others the search would be too easy; with all of them it would take longer than the training between.
    """
    dev = np.unique(splits.dev.passage_ids)
    others = np.setdiff1d(splits.train.passage_ids, dev)
    wanted = min(max(0, size - len(dev)), len(others))
    corpus = np.concatenate([dev, np.random.default_rng(seed).choice(others, wanted, replace=False)])
    return retrieval_task(splits.collection, splits.dev.query_ids, corpus)


def evaluate(
    encoder: Encoder, task: RetrievalTask, texts: Texts, reporter: Reporter | None = None, *, label: str = "evaluation"
) -> Evaluation:
    """Embed the task's queries and corpus, search, and score."""
    reporter = reporter or SilentReporter()
    embedded = embed(encoder, task, texts, reporter, label=label)
    return search(task, embedded, reporter, label=label)


def search(task: RetrievalTask, embedded: Embedded, reporter: Reporter, *, label: str) -> Evaluation:
    """Search with embeddings that are there already, and score."""
    with reporter.counting(f"{label}: search", len(task.query_ids)) as advance:
        return evaluate_embeddings(task, *embedded, on_progress=advance)


def embed(
    encoder: Encoder, task: RetrievalTask, texts: Texts, reporter: Reporter | None = None, *, label: str = "embedding"
) -> Embedded:
    """The task's queries and its corpus; more than one thing is measured with them, and making them takes the time."""
    reporter = reporter or SilentReporter()
    with reporter.counting(label, len(task.query_ids) + len(task.passage_ids)) as advance:
        queries_QE = encoder.embed_all(texts.queries, task.query_ids, on_progress=advance)
        corpus_DE = encoder.embed_all(texts.passages, task.passage_ids, on_progress=advance)
    return Embedded(queries_QE, corpus_DE)


def evaluate_bm25(task: RetrievalTask, collection: Collection, reporter: Reporter | None = None) -> Evaluation:
    """Word search on the same task."""
    with (reporter or SilentReporter()).counting("BM25: search", len(task.query_ids)) as advance:
        return search_by_word(task, collection, on_progress=advance)


def check_loadable(models: Sequence[ModelConfig]) -> tuple[ModelConfig, ...]:
    """Load each model once and let it go, so that a wrong name is told before any work is done.

    Returns:
        The same models, those of the hub with the commit that was loaded as their revision.

    Raises:
        ModelError: a model can't be used.
    """
    return tuple(replace(model, revision=load(model, SilentReporter()).source.revision) for model in models)


def evaluate_others(
    models: Sequence[ModelConfig], task: RetrievalTask, collection: Collection, reporter: Reporter
) -> dict[str, Evaluation]:
    """Evaluations of other models on the task by their names, one model in memory at a time."""
    found = {}
    for model in models:
        encoder = load(model, reporter)
        texts = tokenize(encoder, collection, reporter)
        found[model.base] = evaluate(encoder, task, texts, reporter, label=model.base)
    return found


def other_models(model: ModelConfig, names: Sequence[str]) -> tuple[ModelConfig, ...]:
    """Models to compare with, each with its own prompts, computed as `model` is."""
    own = replace(model, revision=None, memory="auto", query_prompt=None, passage_prompt=None)
    return tuple(replace(own, base=name) for name in dict.fromkeys(names))


def build_trainer(
    encoder: Encoder,
    splits: Splits,
    texts: Texts,
    config: TrainingConfig,
    *,
    out: Path,
    loss: LossConfig | None = None,
    plan: Plan | None = None,
    seed: int = 0,
    reporter: Reporter | None = None,
) -> Trainer:
    """The trainer of a run: contrastive loss on the training split, checkpoints chosen on the dev split.

    Args:
        encoder: with what is to be trained made trainable.
        splits: from `prepare`.
        texts: the splits' texts, from `tokenize`.
        config: optimiser and steps.
        out: folder for `checkpoints/` and `tensorboard/`.
        loss: what a step makes smaller; the defaults if not given.
        plan: what `config` comes to; derived if not given.
        seed: of the data order.
        reporter: is told how it goes.
    """
    reporter, loss = reporter or SilentReporter(), loss or LossConfig()
    plan = plan or _plan(encoder, config, len(splits.train))
    largest = _largest_batch(splits, texts, config, plan, seed=seed)
    tokens = config.micro_batch_tokens or choose_micro_batch(
        encoder, splits.train, texts.queries, texts.passages, largest=largest
    )
    micro_batch = MicroBatch(tokens)
    objective = ContrastiveObjective(
        encoder=encoder,
        pairs=splits.train,
        qrels=splits.collection.qrels,
        query_tokens=texts.queries,
        passage_tokens=texts.passages,
        scale=loss.scale,
        both_directions=loss.both_directions,
        micro_batch=micro_batch,
    )
    dev = dev_task(splits, size=config.dev_corpus, seed=seed)
    _report_plan(plan, config, len(dev.passage_ids), reporter)
    if tokens < largest:
        reporter.note(
            f"a batch of {plan.batch_size:,} pairs takes up to {largest:,} tokens; {tokens:,} at a time fit the "
            "memory, so gradients are cached"
        )
    return Trainer(
        model=encoder,
        objective=objective,
        evaluate=lambda: evaluate(encoder, dev, texts).means,
        pairs=splits.train,
        config=config,
        plan=plan,
        seed=seed,
        checkpoints=Checkpoints(out / "checkpoints", keep_last=config.keep_last),
        log_folder=out,
        reporter=reporter,
        mixed_precision="fp16" if encoder.source.precision == "fp16" else "no",
        micro_batch=micro_batch,
        not_finite=objective.not_finite,
    )


def _report_plan(plan: Plan, config: TrainingConfig, dev_passages: int, reporter: Reporter) -> None:
    accumulated = f", {config.accumulate} accumulated a step" if config.accumulate > 1 else ""
    reporter.note(
        f"{plan.steps:,} steps of {plan.batch_size} pairs ({plan.batch_size - 1} in-batch negatives each"
        f"{accumulated}), learning rate {plan.lr:g} after {plan.warmup_steps} warm-up steps, "
        f"dev {config.metric} every {plan.eval_steps} steps among {dev_passages:,} passages"
    )


def _largest_batch(splits: Splits, texts: Texts, config: TrainingConfig, plan: Plan, *, seed: int) -> int:
    """Tokens of the largest batch of the first epoch; those of other epochs are much alike."""
    train = splits.train
    batches = epoch_batches(train, batch_size=plan.batch_size, seed=seed, epoch=0, passage_once=config.passage_once)
    return max(batch_tokens(train, rows, texts.queries, texts.passages) for rows in batches)


def _plan(encoder: Encoder, config: TrainingConfig, pairs: int) -> Plan:
    """The plan for what was made trainable."""
    if encoder.adapter is None:
        return make_plan(config, pairs, method="full")
    started = encoder.adapter.active_peft_config.init_lora_weights
    return make_plan(config, pairs, init="pissa" if started == "pissa" else "default")
