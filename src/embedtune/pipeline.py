"""The whole job, top to bottom: read, clean, split, baseline, train, test, save, check, report."""

from __future__ import annotations

import time
from dataclasses import replace
from typing import Any

import torch

from embedtune import stages
from embedtune.config import TrainConfig
from embedtune.config_file import to_toml
from embedtune.data.fingerprint import data_hashes
from embedtune.data.prepare import prepare, write_splits
from embedtune.durations import parse_seconds
from embedtune.endings import clear_ending
from embedtune.evaluation.general import general_sets
from embedtune.evaluation.questions import write_questions
from embedtune.evaluation.suspects import write_suspects
from embedtune.exams import set_exam
from embedtune.export.run_folder import RunFolder, RunLock, write_json, write_text
from embedtune.facts import data_facts, hub_revisions, loss_facts, train_facts
from embedtune.kernels.allocator import keep_freed_memory
from embedtune.models.adapters import check_trainable, make_trainable, trainable_parameters
from embedtune.models.encoder import Encoder
from embedtune.models.recompute import recompute_layers
from embedtune.models.source import pinned_name
from embedtune.phases import MinedPhases
from embedtune.progress import Reporter, SilentReporter
from embedtune.report.html import build_html
from embedtune.report.results import build_results, environment
from embedtune.resolving import resolve
from embedtune.resuming import Identity, same_settings
from embedtune.saving import blend, merged_into_original, save, write_cards
from embedtune.training.kinds import run_plan, settings_for
from embedtune.training.objective import check_loss, check_loss_models
from embedtune.training.optim import check_8bit
from embedtune.training.plan import make_plan
from embedtune.training.random_state import same_bits
from embedtune.training.signals import StopRequest, stop_requests


def train(config: TrainConfig, reporter: Reporter | None = None, *, started: float | None = None) -> dict[str, Any]:
    """Fine-tune an encoder on question/passage pairs, or on graded pairs of texts, and write the run's folder.

    Args:
        config: everything the run can be told.
        reporter: is told how the run goes; silent by default.
        started: when `max_time` began, by `time.monotonic()`; now if not given.

    Returns:
        The content of `results.json`.

    Raises:
        UserError: the data, the base model, an option or the output folder can't be used.
        RunError: the run failed.
        TrainingInterrupted: it was stopped, or its time was over; everything is saved.
    """
    reporter = reporter or SilentReporter()
    folder = RunFolder(config.output.out)
    folder.check(resume=config.output.resume)
    time_given = config.training.max_time
    spent = 0.0 if started is None else time.monotonic() - started
    seconds = parse_seconds(time_given, option="max-time") - spent if time_given else None
    with (
        same_bits(config.training.deterministic),
        stop_requests(seconds) as stop,
        RunLock(folder.root) as lock,
        clear_ending(folder, lock, stop),
    ):
        return _train(config, folder, lock, stop, reporter)


def _train(
    config: TrainConfig, folder: RunFolder, lock: RunLock, stop: StopRequest, reporter: Reporter
) -> dict[str, Any]:
    """The run itself; whatever ends it is told by `clear_ending`."""
    seed, resume = config.output.seed, config.output.resume
    if resume:
        lock.take()
        config = same_settings(config, folder)
    identity = Identity(folder, resume=resume)

    reporter.stage("Data")
    splits = prepare(config.data, seed=seed)
    sets = general_sets(config.evaluation.forgetting)
    training, loss = settings_for(config.training, config.loss, graded=splits.collection.graded)
    config = replace(config, training=training, loss=loss)
    identity.check_data(data_hashes(splits), {name: len(pairs) for name, pairs in splits.pairs.items()})
    make_plan(config.training, len(splits.train))  # says what can't be planned, before the model is loaded
    stages.report_splits(splits, reporter)

    reporter.stage("Base model")
    keep_freed_memory()
    low_memory = config.model.memory == "low"
    encoder = stages.load(config.model, reporter, four_bit=low_memory, master_weights=config.adapter.trains_weights)
    identity.check_base(encoder)
    if (changed := identity.check_environment(environment(encoder.device, encoder.source.precision))) is not None:
        reporter.warn(changed)
    check_trainable(encoder, config.adapter)
    others = stages.check_loadable(
        stages.other_models(replace(config.model, max_length=None), config.evaluation.against)
    )
    check_loss(config.loss, encoder, splits.train)
    config = replace(config, loss=check_loss_models(config.loss, stages.other_model(config.model)))
    if config.training.optimizer == "adamw8bit":
        check_8bit(encoder.device)
    plan = run_plan(config, len(splits.train), width=encoder.width, graded=splits.collection.graded)
    config, of_data = resolve(config, plan, encoder, others=tuple(map(pinned_name, others.values())))
    texts = stages.tokenize(encoder, splits.collection, reporter)
    exam = set_exam(splits.collection, splits.test, reporter, seed=seed)
    base = exam.examine(encoder, texts, sets, reporter, label="base model on the test set")
    further = stages.evaluate_others(others, exam.evaluate, splits.collection, reporter)

    reporter.stage("Training")
    quantization = _make_trainable(encoder, config, reporter)
    trainer = stages.build_trainer(
        encoder,
        splits,
        texts,
        config.training,
        loss=config.loss,
        plan=plan,
        seed=seed,
        out=folder.root,
        reporter=reporter,
    )
    assert trainer.micro_batch is not None
    config = replace(config, training=replace(config.training, micro_batch_tokens=trainer.micro_batch.tokens))
    # Nothing is written until all that can be wrong with the input has been looked at.
    if not resume:
        folder.create()
        lock.take()
        folder.check(resume=False)  # another run may have been there in the meantime
    write_text(folder.config, to_toml(config))
    write_json(folder.fingerprint, identity.now)
    write_splits(splits, folder.splits)
    phases = MinedPhases(trainer, encoder, splits, texts, config.mining, folder, reporter=reporter)
    progress = phases.trainer.run(resume=resume, stop=stop)

    reporter.stage("Test")
    sections: dict[str, Any] = {}
    if progress.best_step > 0:
        evaluate_dev = stages.dev_evaluation(splits, texts, config.training, seed=seed)
        sections["blend"] = blend(encoder, config, evaluate_dev, sets, reporter)
    weight = sections["blend"]["used"] if "blend" in sections else 1.0
    saved = save(encoder, config, weight, splits.collection, folder, reporter)
    tuned = exam.examine(saved.encoder, texts, sets, reporter, label="tuned model on the test set", sizes=True)
    if config.adapter.merge_into == "original":
        trained = exam.evaluate(encoder, texts, reporter, label="model as trained on the test set")
        sections["merge"] = merged_into_original(
            trained, tuned.evaluation, saved, metric=config.training.metric, reporter=reporter
        )
    found = exam.assess({"base": base, "tuned": tuned}, further)
    results = build_results(
        base_model=config.model.base,
        seed=seed,
        evaluations=found.evaluations,
        delta=found.delta,
        method=config.adapter.method,
        data={**data_facts(splits), **exam.facts(texts, encoder), "hashes": identity.now["data"]["hashes"]},
        train=train_facts(progress, plan, config.training.metric, encoder),
        loss=loss_facts(config.loss, trainer.model),
        environment={
            **identity.now["environment"],
            "base_weights": identity.now["base_weights"],
            **hub_revisions(config.model, others, of_data),
        },
        **({"mining": phases.facts} if phases.facts else {}),
        **found.sections,
        **quantization,
        **sections,
    )
    if found.suspects is not None:
        write_suspects(folder.suspects, found.suspects)
    if found.questions is not None:
        write_questions(folder.questions, found.questions)
    write_json(folder.results, results)
    write_cards(results, config, encoder, folder)
    write_text(folder.report, build_html(results, folder.root))
    return results


def _make_trainable(encoder: Encoder, config: TrainConfig, reporter: Reporter) -> dict[str, Any]:
    """Free or attach what is trained; returns what the results say of 4-bit weights, if there are any."""
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
