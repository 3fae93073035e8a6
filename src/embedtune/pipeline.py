"""The whole job, top to bottom: read, clean, split, baseline, train, test, save, check, report."""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from embedtune import stages
from embedtune.config import TrainConfig, to_toml
from embedtune.data.collection import Collection
from embedtune.data.fingerprint import data_hashes
from embedtune.data.prepare import Splits, prepare, write_splits
from embedtune.durations import parse_seconds
from embedtune.endings import clear_ending
from embedtune.evaluation.run import Evaluation, RetrievalTask, compare, evaluate_bm25
from embedtune.export.run_folder import RunFolder, RunLock, write_json, write_text
from embedtune.export.sentence_transformers import check_saved, compare_saved, save_adapter, save_merged
from embedtune.kernels.allocator import keep_freed_memory
from embedtune.models.adapters import check_trainable, make_trainable, trainable_parameters
from embedtune.models.encoder import Encoder
from embedtune.models.hardware import peak_memory_bytes
from embedtune.models.recompute import recompute_layers
from embedtune.progress import Reporter, SilentReporter
from embedtune.report.html import build_html
from embedtune.report.results import build_results, environment
from embedtune.resuming import Identity, same_settings
from embedtune.training.checkpoint import Progress
from embedtune.training.optim import check_8bit
from embedtune.training.plan import Plan, make_plan
from embedtune.training.random_state import same_bits
from embedtune.training.signals import StopRequest, stop_requests

TEXTS_CHECKED = 64
"""Passages whose embeddings are compared after the saved model is loaded again."""


def train(config: TrainConfig, reporter: Reporter | None = None, *, started: float | None = None) -> dict[str, Any]:
    """Fine-tune an encoder on question/passage pairs and write the run's folder.

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
    identity.check_data(data_hashes(splits), _pairs(splits))
    plan = make_plan(config.training, len(splits.train), method=config.adapter.method, init=config.adapter.init)
    _report_splits(splits, reporter)

    reporter.stage("Base model")
    keep_freed_memory()
    low_memory = config.model.memory == "low"
    encoder = stages.load(config.model, reporter, four_bit=low_memory, master_weights=config.adapter.trains_weights)
    identity.check_base(encoder)
    if (changed := identity.check_environment(environment(encoder.device, encoder.source.precision))) is not None:
        reporter.warn(changed)
    check_trainable(encoder, config.adapter)
    if config.training.optimizer == "adamw8bit":
        check_8bit(encoder.device)
    config = _resolve(config, plan, encoder)
    texts = stages.tokenize(encoder, splits.collection, reporter)
    test = stages.held_out_task(splits)
    bm25 = evaluate_bm25(test, splits.collection)
    base = stages.evaluate(encoder, test, texts, reporter, label="base model on the test set")

    reporter.stage("Training")
    quantization = _make_trainable(encoder, config, reporter)
    trainer = stages.build_trainer(
        encoder, splits, texts, config.training, plan=plan, seed=seed, out=folder.root, reporter=reporter
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
    progress = trainer.run(resume=resume, stop=stop)

    reporter.stage("Test")
    trained = stages.evaluate(encoder, test, texts, reporter, label="tuned model on the test set")
    cosines_N = _save(encoder, config, splits.collection, folder, reporter)
    tuned, merge = _merged_into_original(config, folder, test, texts, trained, cosines_N, reporter)
    results = build_results(
        base_model=config.model.base,
        seed=seed,
        evaluations={"base": base, "tuned": tuned, "bm25": bm25},
        delta=compare(base, tuned, seed=seed),
        method=config.adapter.method,
        data={**_data_facts(splits, test), "hashes": identity.now["data"]["hashes"]},
        train=_train_facts(progress, plan, config.training.metric, encoder),
        environment={**identity.now["environment"], "base_weights": identity.now["base_weights"]},
        **quantization,
        **merge,
    )
    write_json(folder.results, results)
    write_text(folder.report, build_html(results, folder.root))
    return results


def _resolve(config: TrainConfig, plan: Plan, encoder: Encoder) -> TrainConfig:
    """The config with every derived value filled in; given to `train` again, from any folder, it repeats the run."""
    training = replace(config.training, batch_size=plan.batch_size, eval_steps=plan.eval_steps, lr=plan.lr)
    sources = {name: _absolute(getattr(config.data, name)) for name in ("train", "test", "dev", "corpus")}
    return replace(
        config,
        data=replace(config.data, **sources),
        training=training,
        model=replace(encoder.source, base=_absolute(config.model.base)),
        adapter=replace(config.adapter, start_adapter=_absolute(config.adapter.start_adapter)),
        output=replace(config.output, out=config.output.out.absolute(), resume=False),
    )


def _absolute(source: str | None) -> Any:
    """A file or folder by its full path; a hub id, or nothing, as it is."""
    path = Path(source or "").expanduser()
    return str(path.absolute()) if source and path.exists() else source


def _report_splits(splits: Splits, reporter: Reporter) -> None:
    for note in splits.notes:
        reporter.note(note)
    reporter.note(
        f"{len(splits.train):,} pairs to train on, {len(splits.dev):,} to choose the checkpoint on, "
        f"{len(splits.test):,} to test on; {len(splits.collection.passages):,} distinct passages"
    )
    dropped = [f"{count:,} {reason.replace('_', ' ')}" for reason, count in splits.dropped.items() if count]
    if dropped:
        reporter.note("not used: " + ", ".join(dropped))


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


def _save(
    encoder: Encoder, config: TrainConfig, collection: Collection, folder: RunFolder, reporter: Reporter
) -> Tensor:
    """Adapter and merged model to disk, and the proof that what lies there is what was trained.

    Returns:
        The cosine similarity of what the saved and the trained model make of some passages.
    """
    into_original = config.adapter.merge_into == "original"
    if encoder.adapter is not None:
        save_adapter(encoder, folder.adapter)
    save_merged(encoder, folder.model, into_original=into_original)
    passages = collection.passages[:TEXTS_CHECKED]
    if into_original:
        return compare_saved(folder.model, encoder, passages)
    cosines_N = check_saved(folder.model, encoder, passages)
    worst = cosines_N.min().item()
    reporter.note(f"the saved model, loaded again, agrees with the trained one: cosine at least {worst:.5f}")
    return cosines_N


def _merged_into_original(
    config: TrainConfig,
    folder: RunFolder,
    test: RetrievalTask,
    texts: stages.Texts,
    trained: Evaluation,
    cosines_N: Tensor,
    reporter: Reporter,
) -> tuple[Evaluation, dict[str, Any]]:
    """The evaluation of the saved model, and what merging into other weights than those trained on has cost."""
    if config.adapter.merge_into != "original":
        return trained, {}
    saved = stages.load(replace(config.model, base=str(folder.model), revision=None), SilentReporter())
    tuned = stages.evaluate(saved, test, texts, reporter, label="saved model on the test set")
    metric = config.training.metric
    reporter.note(
        f"merged into the original weights: {metric} {trained.means[metric]:.4f} became {tuned.means[metric]:.4f}, "
        f"cosine to the trained embeddings at least {cosines_N.min():.4f}"
    )
    facts = {
        "into": "original",
        "trained": trained.means,
        "cosine": {"min": cosines_N.min().item(), "mean": cosines_N.mean().item()},
    }
    return tuned, {"merge": facts}


def _pairs(splits: Splits) -> dict[str, int]:
    return {"train": len(splits.train), "dev": len(splits.dev), "test": len(splits.test)}


def _data_facts(splits: Splits, test: RetrievalTask) -> dict[str, Any]:
    return {
        **{f"{name}_pairs": pairs for name, pairs in _pairs(splits).items()},
        "test_queries": len(test.query_ids),
        "corpus_passages": len(test.passage_ids),
        "dropped": splits.dropped,
    }


def _train_facts(progress: Progress, plan: Plan, metric: str, encoder: Encoder) -> dict[str, Any]:
    trainable, total = trainable_parameters(encoder)
    return {
        "steps": progress.step,
        "best_step": progress.best_step,
        "batch_size": plan.batch_size,
        "metric": metric,
        "pairs": progress.pairs,
        "tokens": progress.tokens,
        "seconds": progress.seconds,
        "pairs_per_second": progress.pairs / progress.seconds,
        "tokens_per_second": progress.tokens / progress.seconds,
        "peak_memory_bytes": peak_memory_bytes(encoder.device),
        "trainable_parameters": trainable,
        "total_parameters": total,
        "loss": progress.losses,
        "dev": progress.evaluations,
    }
