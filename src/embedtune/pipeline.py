"""The whole job, top to bottom: read, clean, split, baseline, train, test, save, check, report."""

from __future__ import annotations

import time
from dataclasses import replace
from typing import Any

from embedtune.assessment import Assessment
from embedtune.beginnings import begin, claim, take_up
from embedtune.config import TrainConfig
from embedtune.durations import parse_seconds
from embedtune.endings import clear_ending
from embedtune.evaluation.questions import write_questions
from embedtune.evaluation.suspects import write_suspects
from embedtune.exams import set_exam
from embedtune.export.run_folder import RunFolder, RunLock, write_json, write_text
from embedtune.facts import data_facts, loss_facts, train_facts
from embedtune.loading import tokenize
from embedtune.measuring import dev_set, evaluate_others
from embedtune.members import train_members
from embedtune.models.encoder import Encoder
from embedtune.phases import word_teacher
from embedtune.progress import Reporter, SilentReporter
from embedtune.report.html import build_html
from embedtune.report.results import build_results
from embedtune.saving import blend, merged_into_original, save, write_cards
from embedtune.trainer import build_trainer, make_ready
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
    resume, seed = config.output.resume, config.output.seed
    begun = begin(take_up(config, folder, lock), folder, reporter)
    config, splits, encoder = begun.config, begun.splits, begun.encoder
    texts = tokenize(encoder, splits.collection, reporter)
    exam = set_exam(splits.collection, splits.test, reporter, seed=seed)
    dev = dev_set(splits, texts, config.training, seed=seed)
    base = exam.examine(encoder, texts, begun.general, reporter, label="base model on the test set", dev=dev.task)
    if config.adapter.starts_as_base:
        dev = replace(dev, base=base.dev)
    further = evaluate_others(begun.others, exam.evaluate, splits.collection, reporter)

    reporter.stage("Training")
    sections = make_ready(encoder, config, reporter)
    trainer = build_trainer(
        encoder, splits, texts, config.training,
        loss=config.loss, plan=begun.plan, dev=dev, seed=seed, out=folder.root, reporter=reporter,
    )  # fmt: skip
    assert trainer.micro_batch is not None
    config = replace(config, training=replace(config.training, micro_batch_tokens=trainer.micro_batch.tokens))
    words = word_teacher(splits, dev, weight=config.loss.bm25_weight, metric=trainer.config.metric)
    claim(begun, config, folder, lock, resume=resume)  # nothing is written before
    reached, mined = train_members(
        trainer, encoder, splits, texts, config.mining, folder,
        words=words, resume=resume, stop=stop, reporter=reporter,
    )  # fmt: skip
    sections |= {"mining": mined} if mined else {}

    reporter.stage("Test")
    # The base as published: an adapter that begins as zero may sit on weights in 4 bits.
    weight, declined = 1.0 if config.adapter.start_adapter else 0.0, False
    if reached.kept:
        sections["blend"] = blend(encoder, config, dev, begun.general, base.general, reporter)
        weight, declined = sections["blend"]["used"], sections["blend"]["declined"]
    saved = save(encoder, config, weight, splits.collection, folder, reporter, adapter=not declined)
    tuned = exam.examine(saved.encoder, texts, begun.general, reporter, label="tuned model on the test set", sizes=True)
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
        data={**data_facts(splits), **exam.facts(texts, encoder), "hashes": begun.identity.now["data"]["hashes"]},
        train=train_facts(reached, begun.plan, config.training.metric, encoder),
        loss=loss_facts(config.loss, trainer.model),
        environment=begun.environment,
        **found.sections,
        **sections,
    )
    _write(results, found, config, encoder, folder)
    return results


def _write(
    results: dict[str, Any], found: Assessment, config: TrainConfig, encoder: Encoder, folder: RunFolder
) -> None:
    """The results, and what is made of them for people."""
    if found.suspects is not None:
        write_suspects(folder.suspects, found.suspects)
    if found.questions is not None:
        write_questions(folder.questions, found.questions)
    write_json(folder.results, results)
    write_cards(results, config, encoder, folder)
    write_text(folder.report, build_html(results, folder.root))
