"""From an encoder, the splits and the settings to a trainer that only has to be run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from embedtune.config import LossConfig, TrainConfig, TrainingConfig
from embedtune.data.batches import epoch_batches
from embedtune.data.prepare import Splits
from embedtune.data.tokens import Texts
from embedtune.errors import ConfigError
from embedtune.evaluation.noise import items_of
from embedtune.evaluation.run import Evaluation
from embedtune.evaluation.similarity import Similarity
from embedtune.loading import other_model
from embedtune.losses.build import build_loss
from embedtune.losses.scale import LearnedScale
from embedtune.measuring import DevSet, dev_corpus, dev_set, dev_texts
from embedtune.models.adapters import make_trainable, trainable_parameters
from embedtune.models.encoder import Encoder
from embedtune.models.recompute import recompute_layers
from embedtune.progress import Reporter, SilentReporter
from embedtune.training.advice import Advice, ask_advisers
from embedtune.training.batch import batch_tokens
from embedtune.training.budget import choose_micro_batch
from embedtune.training.checkpoint import Checkpoints
from embedtune.training.contrastive import ContrastiveObjective
from embedtune.training.graded import GradedObjective
from embedtune.training.kinds import mines, settings_for
from embedtune.training.loop import Trainer
from embedtune.training.microbatch import MicroBatch
from embedtune.training.objective import WithScale, check_loss
from embedtune.training.plan import Plan, make_plan
from embedtune.training.selection import Measured


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


def run_plan(config: TrainConfig, splits: Splits, encoder: Encoder) -> Plan:
    """What a run by this config does with these splits and this base.

    Raises:
        ConfigError: as `make_plan` and `mines`; BM25 was to teach in epochs that there are not.
    """
    plan = make_plan(
        config.training,
        len(splits.train),
        method=config.adapter.method,
        init=config.adapter.init,
        width=encoder.width,
        mining=mines(config, graded=splits.collection.graded),
        dev_texts=dev_texts(splits, config.training.dev_corpus),
    )
    if config.loss.bm25_weight and not plan.mined_epochs:
        raise ConfigError(
            f"--bm25-weight {config.loss.bm25_weight:g}: BM25 teaches in the epochs with mined negatives, and this run "
            "has none.\nType:  --mined-epochs 2, or leave --bm25-weight out."
        )
    return plan


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
    dev: DevSet | None = None,
    seed: int = 0,
    reporter: Reporter | None = None,
) -> Trainer:
    """The trainer of a run: contrastive loss on the training split, checkpoints chosen on the dev split.

    It trains once, whatever `trainings` says; `members.train_members` has it train so often.

    Args:
        encoder: with what is to be trained made trainable.
        splits: from `prepare`.
        texts: the splits' texts, from `tokenize`.
        config: optimiser and steps.
        out: folder for `checkpoints/` and `tensorboard/`.
        loss: what a step makes smaller; the defaults if not given.
        plan: what `config` comes to; derived if not given.
        advice: what a teacher and a guide say of the training rows; they are asked if not given.
        dev: what chooses the checkpoint, from `dev_set`; made if not given.
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
    dev = dev or dev_set(splits, texts, config, seed=seed)
    _report_plan(plan, config, splits, reporter)
    if tokens < largest:
        reporter.note(
            f"a batch of {plan.batch_size:,} pairs takes up to {largest:,} tokens; {tokens:,} at a time fit the "
            "memory, so gradients are cached"
        )
    return Trainer(
        model=encoder if scale is None else WithScale(encoder, scale),
        objective=objective,
        evaluate=lambda: _measured(dev.measure(encoder), config.metric),
        start=None if dev.base is None else _measured(dev.base, config.metric),
        worse=dev.worse,
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


def _measured(found: Evaluation | Similarity, metric: str) -> Measured:
    """What an evaluation on the dev set means to the step loop, for which that metric decides."""
    return Measured(found.means, items_of(found, metric).tolist())


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
        mined = ""
        if phase.mines:
            mined = ", mined hard ones among them" if phase.neighbours else " and mined ones"
        detail = f"{phase.batch_size - 1} in-batch negatives each{mined}"
        if graded:
            detail = "loss CoSENT: a higher grade is to have a higher cosine"
        reporter.note(
            f"{phase.steps:,} {'further ' if phase.first_step else ''}steps of {phase.batch_size} pairs "
            f"({detail}{accumulated}), learning rate {phase.lr:g} after {phase.warmup_steps} warm-up steps"
            f"{', the mean of their weights' if phase.averaged else ''}"
        )
    among = f"on {len(splits.dev):,} pairs"
    if not graded:
        dev, _, wanted = dev_corpus(splits, config.dev_corpus)
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
