"""What runs are made of: load, tokenise, evaluate, train. The command line and Python share these calls."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple, Protocol, TypeVar

import numpy as np
import torch
from torch import Tensor

from embedtune.config import LossConfig, MiningConfig, ModelConfig, TrainConfig, TrainingConfig
from embedtune.data.batches import epoch_batches
from embedtune.data.collection import Collection, IdArray
from embedtune.data.prepare import Splits
from embedtune.data.tokens import TokenTable
from embedtune.evaluation.run import Evaluation, RetrievalTask, evaluate_embeddings, retrieval_task
from embedtune.evaluation.run import evaluate_bm25 as search_by_word
from embedtune.evaluation.similarity import Similarity, measure_similarity
from embedtune.losses.build import build_loss
from embedtune.losses.scale import LearnedScale
from embedtune.mining.mine import Mined, mine, unmined
from embedtune.mining.pool import training_pool
from embedtune.models.adapters import make_trainable, trainable_parameters
from embedtune.models.encoder import Encoder
from embedtune.models.judge import load_judge
from embedtune.models.load import check_encoder, load_encoder
from embedtune.models.recompute import recompute_layers
from embedtune.models.source import named
from embedtune.progress import Reporter, SilentReporter
from embedtune.training.advice import Advice, ask_advisers
from embedtune.training.batch import batch_tokens
from embedtune.training.budget import choose_micro_batch
from embedtune.training.checkpoint import Checkpoints
from embedtune.training.contrastive import ContrastiveObjective
from embedtune.training.graded import GradedObjective
from embedtune.training.kinds import settings_for
from embedtune.training.loop import Trainer
from embedtune.training.microbatch import MicroBatch
from embedtune.training.objective import WithScale, check_loss
from embedtune.training.plan import Plan, make_plan

COMMIT_SHOWN = 8
"""Characters of a commit, where it is part of a name."""


@dataclass(frozen=True)
class Texts:
    """Every text of a collection as token ids."""

    queries: TokenTable
    passages: TokenTable


Found = TypeVar("Found", Evaluation, Similarity, covariant=True)


class Measure(Protocol[Found]):
    """Tells how well an encoder does on a test set."""

    def __call__(self, encoder: Encoder, texts: Texts, reporter: Reporter, *, label: str) -> Found: ...


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


def load_base(config: TrainConfig, reporter: Reporter) -> Encoder:
    """The model that will be trained, told about, with its weights held as the method wants them.

    Raises:
        ModelError: the model, the device or the precision can't be used.
    """
    four_bit = config.model.memory == "low"
    return load(config.model, reporter, four_bit=four_bit, master_weights=config.adapter.trains_weights)


def make_ready(encoder: Encoder, config: TrainConfig, reporter: Reporter) -> dict[str, Any]:
    """Free or attach what is trained, from the run's seed on.

    Args:
        encoder: from `load_base`.
        config: of the run.
        reporter: is told how much there is to train.

    Returns:
        The section "quantization" of the results, if the base is held in 4 bits.
    """
    torch.manual_seed(config.output.seed)
    facts = {}
    if config.adapter.method == "qlora":
        from embedtune.models.quantize import describe, quantize  # needs bitsandbytes

        low_memory = config.model.memory == "low"
        if not low_memory:
            reporter.note(quantize(encoder, low_memory=False))
        facts = {"quantization": {**describe(encoder), "base_measured_in_4_bits": low_memory}}
    make_trainable(encoder, config.adapter)
    if config.training.gradient_checkpointing:
        layers = recompute_layers(encoder.backbone)
        reporter.note(f"activations of {layers} layers are computed again in the backward pass")
    trainable, total = trainable_parameters(encoder)
    reporter.note(f"trainable parameters: {trainable:,} of {total:,} ({trainable / total:.2%})")
    return facts


def tokenize(encoder: Encoder, collection: Collection, reporter: Reporter | None = None) -> Texts:
    """All queries and passages of the collection, each with its role's prompt.

    Sentences have no role, so they get the model's default prompt, which most models don't have.
    """
    if collection.sentences:
        sentences = encoder.token_table(collection.queries, None)
        _report_truncated(sentences, "sentences", encoder, reporter)
        if reporter is not None and (encoder.prompt("query") or encoder.prompt("passage")):
            reporter.note(
                "the two sentences of a pair play the same part, so neither of these prompts is put before them"
            )
        return Texts(queries=sentences, passages=sentences)
    texts = Texts(
        queries=encoder.token_table(collection.queries, "query"),
        passages=encoder.token_table(collection.passages, "passage"),
    )
    _report_truncated(texts.passages, "passages", encoder, reporter)
    return texts


def _report_truncated(tokens: TokenTable, what: str, encoder: Encoder, reporter: Reporter | None) -> None:
    if tokens.truncated and reporter is not None:
        reporter.warn(
            f"{tokens.truncated:,} of {len(tokens):,} {what} are longer than "
            f"{encoder.max_length} tokens; what lies behind is not read (--max-length)"
        )


def report_splits(splits: Splits, reporter: Reporter) -> None:
    """What was read, how it was split, and what was not used."""
    for note in splits.notes:
        reporter.note(note)
    for warning in splits.warnings:
        reporter.warn(warning)
    reporter.note(
        f"{len(splits.train):,} pairs to train on, {len(splits.dev):,} to choose the checkpoint on, "
        f"{len(splits.test):,} to test on; {len(splits.collection.passages):,} distinct "
        f"{'sentences' if splits.collection.sentences else 'passages'}"
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
    dev, others, wanted = _dev_corpus(splits, size)
    corpus = np.concatenate([dev, np.random.default_rng(seed).choice(others, wanted, replace=False)])
    return retrieval_task(splits.collection, splits.dev.query_ids, corpus)


def _dev_corpus(splits: Splits, size: int) -> tuple[IdArray, IdArray, int]:
    """The dev passages, the training passages beside them, and how many of these are searched too."""
    dev = np.unique(splits.dev.passage_ids)
    others = np.setdiff1d(splits.train.passage_ids, dev)
    return dev, others, min(max(0, size - len(dev)), len(others))


def dev_evaluation(
    splits: Splits, texts: Texts, config: TrainingConfig, *, seed: int
) -> Callable[[Encoder], Evaluation | Similarity]:
    """What measures an encoder on the dev split: a search, or the cosines of graded pairs."""
    if splits.collection.graded:
        return lambda encoder: measure_similarity(encoder, splits.dev, texts.queries, texts.passages)
    dev = dev_task(splits, size=config.dev_corpus, seed=seed)
    return lambda encoder: evaluate(encoder, dev, texts)


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


def check_loadable(models: Sequence[ModelConfig]) -> dict[str, ModelConfig]:
    """Look each model up and at its files, so that a wrong name is told before any work is done.

    Returns:
        The same models by the names to show, those of the hub with the commit that will be loaded as their revision.
        Where two are commits of one repository, their names tell which.

    Raises:
        ModelError: a model can't be used.
    """
    pinned = list(dict.fromkeys(map(check_encoder, models)))
    bases = [model.base for model in pinned]
    return {
        model.base if bases.count(model.base) == 1 else f"{model.base}@{(model.revision or '')[:COMMIT_SHOWN]}": model
        for model in pinned
    }


def evaluate_others(
    models: Mapping[str, ModelConfig], measure: Measure[Found], collection: Collection, reporter: Reporter
) -> dict[str, Found]:
    """What `measure` finds of other models by their names, one model in memory at a time."""
    found = {}
    for name, model in models.items():
        encoder = load(model, reporter)
        texts = tokenize(encoder, collection, reporter)
        found[name] = measure(encoder, texts, reporter, label=name)
    return found


def other_models(model: ModelConfig, names: Sequence[str]) -> tuple[ModelConfig, ...]:
    """Models to compare with, each with its own prompts, computed as `model` is; OWNER/NAME@REVISION is one too."""
    own = replace(other_model(model), max_length=model.max_length)
    return tuple(named(own, name) for name in names)


def mine_negatives(
    encoder: Encoder,
    splits: Splits,
    texts: Texts,
    config: MiningConfig,
    *,
    seed: int = 0,
    reporter: Reporter | None = None,
) -> Mined:
    """Add hard negatives to the training rows, as this encoder sees them now.

    Args:
        encoder: the base model, or one in training.
        splits: from `prepare`.
        texts: the splits' texts, from `tokenize`.
        config: what to mine.
        seed: of what is drawn.
        reporter: is told how it goes.

    Raises:
        ModelError: the judge can't be used.
    """
    reporter, pool = reporter or SilentReporter(), training_pool(splits)
    if config.hard_negatives == 0:
        return unmined(splits, pool, config)
    judge = None
    if config.judge is not None:
        trusted = encoder.source.trust_remote_code
        judge = load_judge(config.judge, device=encoder.device, trust_remote_code=trusted)
    query_ids = np.unique(splits.train.query_ids)
    with reporter.counting("mining: embedding", len(query_ids) + len(pool.passage_ids)) as advance:
        queries_QE = encoder.embed_all(texts.queries, query_ids, on_progress=advance)
        passages_DE = encoder.embed_all(texts.passages, pool.passage_ids, on_progress=advance)
    return mine(splits, pool, queries_QE, passages_DE, config, judge=judge, seed=seed, reporter=reporter)


def other_model(model: ModelConfig) -> ModelConfig:
    """How another model is computed beside that one; its name is still that one's."""
    return replace(model, revision=None, memory="auto", max_length=None, query_prompt=None, passage_prompt=None)


def build_trainer(
    encoder: Encoder,
    splits: Splits,
    texts: Texts,
    config: TrainingConfig,
    *,
    out: Path,
    loss: LossConfig | None = None,
    plan: Plan | None = None,
    advice: Advice | None = None,
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
        advice: what a teacher and a guide say of the training rows; they are asked if not given.
        seed: of the data order.
        reporter: is told how it goes.

    Raises:
        ConfigError, DataError: the loss does not fit the model or the data.
        ModelError: the guide or the teacher can't be used.
    """
    reporter = reporter or SilentReporter()
    config, loss = settings_for(config, loss or LossConfig(), graded=splits.collection.graded)
    check_loss(loss, encoder, splits.train)
    plan = plan or _plan(encoder, config, len(splits.train))
    largest = _largest_batch(splits, texts, config, plan, seed=seed)
    tokens = config.micro_batch_tokens or choose_micro_batch(
        encoder, splits.train, texts.queries, texts.passages, largest=largest
    )
    micro_batch = MicroBatch(tokens)
    scale = LearnedScale(loss.scale, device=encoder.device) if loss.learn_scale else None
    if advice is None:
        advice = ask_advisers(splits, loss, other_model(encoder.source), folder=out, reporter=reporter)
    objective = _objective(encoder, splits, texts, loss, advice, scale, micro_batch)
    evaluate_dev = dev_evaluation(splits, texts, config, seed=seed)
    _report_plan(plan, config, splits, reporter)
    if tokens < largest:
        reporter.note(
            f"a batch of {plan.batch_size:,} pairs takes up to {largest:,} tokens; {tokens:,} at a time fit the "
            "memory, so gradients are cached"
        )
    return Trainer(
        model=encoder if scale is None else WithScale(encoder, scale),
        objective=objective,
        evaluate=lambda: evaluate_dev(encoder).means,
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
        keep=advice.keep,
    )


def _objective(
    encoder: Encoder,
    splits: Splits,
    texts: Texts,
    loss: LossConfig,
    advice: Advice,
    scale: LearnedScale | None,
    micro_batch: MicroBatch,
) -> ContrastiveObjective | GradedObjective:
    if loss.loss == "cosent":
        return GradedObjective(encoder, advice.pairs, texts.queries, texts.passages, loss.scale, micro_batch)
    return ContrastiveObjective(
        encoder=encoder,
        pairs=advice.pairs,
        qrels=splits.collection.qrels,
        query_tokens=texts.queries,
        passage_tokens=texts.passages,
        loss=build_loss(loss, scale),
        guide=advice.guide,
        micro_batch=micro_batch,
    )


def _report_plan(plan: Plan, config: TrainingConfig, splits: Splits, reporter: Reporter) -> None:
    accumulated = f", {config.accumulate} accumulated a step" if config.accumulate > 1 else ""
    graded = splits.collection.graded
    for phase in plan.phases:
        detail = f"{phase.batch_size - 1} in-batch negatives each{' and mined ones' if phase.mines else ''}"
        if graded:
            detail = "loss CoSENT: a higher grade is to have a higher cosine"
        reporter.note(
            f"{phase.steps:,} {'further ' if phase.first_step else ''}steps of {phase.batch_size} pairs "
            f"({detail}{accumulated}), learning rate {phase.lr:g} after {phase.warmup_steps} warm-up steps"
        )
    among = f"on {len(splits.dev):,} pairs"
    if not graded:
        dev, _, wanted = _dev_corpus(splits, config.dev_corpus)
        among = f"among {len(dev) + wanted:,} passages"
    reporter.note(f"dev {config.metric} every {plan.eval_steps} steps {among}")


def _largest_batch(splits: Splits, texts: Texts, config: TrainingConfig, plan: Plan, *, seed: int) -> int:
    """Tokens of the largest batch of the first epoch; those of other epochs are much alike."""
    train = splits.train
    batches = epoch_batches(train, batch_size=plan.batch_size, seed=seed, epoch=0, passage_once=config.passage_once)
    return max(batch_tokens(train, rows, texts.queries, texts.passages) for rows in batches)


def _plan(encoder: Encoder, config: TrainingConfig, pairs: int) -> Plan:
    """The plan for what was made trainable."""
    if encoder.adapter is None:
        return make_plan(config, pairs, method="full", width=encoder.width)
    started = encoder.adapter.active_peft_config.init_lora_weights
    return make_plan(config, pairs, init="pissa" if started == "pissa" else "default", width=encoder.width)
