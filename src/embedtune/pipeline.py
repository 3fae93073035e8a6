"""The whole job, top to bottom: read, clean, split, baseline, train, test, save, check, report."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from peft import PeftModel

from embedtune import stages
from embedtune.config import TrainConfig, to_toml
from embedtune.data.collection import Collection, IdArray
from embedtune.data.prepare import Splits, prepare, write_splits
from embedtune.evaluation.run import RetrievalTask, compare, evaluate_bm25, retrieval_task
from embedtune.export.run_folder import RunFolder, write_json, write_text
from embedtune.export.sentence_transformers import check_saved, save_adapter, save_merged
from embedtune.kernels.allocator import keep_freed_memory
from embedtune.models.adapters import attach_lora, trainable_parameters
from embedtune.models.encoder import Encoder
from embedtune.models.hardware import PrecisionName, peak_memory_bytes
from embedtune.progress import Reporter, SilentReporter
from embedtune.report.html import build_html
from embedtune.report.results import build_results, environment
from embedtune.training.checkpoint import Checkpoints, Progress
from embedtune.training.contrastive import ContrastiveObjective
from embedtune.training.loop import Trainer
from embedtune.training.plan import Plan, make_plan

TEXTS_CHECKED = 64
"""Passages whose embeddings are compared after the saved model is loaded again."""


def train(config: TrainConfig, reporter: Reporter | None = None) -> dict[str, Any]:
    """Fine-tune an encoder on question/passage pairs and write the run's folder.

    Args:
        config: everything the run can be told.
        reporter: is told how the run goes; silent by default.

    Returns:
        The content of `results.json`.

    Raises:
        UserError: the data, the base model, an option or the output folder can't be used.
        RunError: the run failed.
        TrainingInterrupted: it was stopped; everything is saved.
    """
    reporter = reporter or SilentReporter()
    seed, resume = config.output.seed, config.output.resume
    folder = RunFolder(config.output.out)
    folder.check(resume=resume)

    reporter.stage("Data")
    splits = prepare(config.data, seed=seed)
    plan = make_plan(config.training, len(splits.train))
    _report_splits(splits, reporter)

    reporter.stage("Base model")
    keep_freed_memory()
    encoder, precision = stages.load(config.model, reporter)
    config = _resolve(config, plan, encoder, precision)
    folder.create()
    write_text(folder.config, to_toml(config))
    write_splits(splits, folder.splits)
    texts = stages.tokenize(encoder, splits.collection, reporter)
    test = retrieval_task(splits.collection, splits.test.query_ids, np.arange(len(splits.collection.passages)))
    bm25 = evaluate_bm25(test, splits.collection)
    base = stages.evaluate(encoder, test, texts, reporter, "base model on the test set")

    reporter.stage("Training")
    adapted = _attach(encoder, config, reporter)
    trainer = _trainer(encoder, splits, texts, config, plan, folder, reporter)
    progress = trainer.run(resume=resume)

    reporter.stage("Test")
    tuned = stages.evaluate(encoder, test, texts, reporter, "tuned model on the test set")
    _save(adapted, encoder, config, splits.collection, folder, reporter)
    results = build_results(
        base_model=config.model.base,
        seed=seed,
        evaluations={"base": base, "tuned": tuned, "bm25": bm25},
        delta=compare(base, tuned, seed=seed),
        method=config.adapter.method,
        data=_data_facts(splits, test),
        train=_train_facts(progress, plan, config.training.metric, encoder),
        environment=environment(encoder.device, precision),
    )
    write_json(folder.results, results)
    write_text(folder.report, build_html(results, folder.root))
    return results


def _resolve(config: TrainConfig, plan: Plan, encoder: Encoder, precision: PrecisionName) -> TrainConfig:
    """The config with every derived value filled in; given to `train` again, from any folder, it repeats the run."""
    training = replace(config.training, batch_size=plan.batch_size, eval_steps=plan.eval_steps)
    model = replace(config.model, max_length=encoder.max_length, precision=precision)
    sources = {name: _absolute(getattr(config.data, name)) for name in ("train", "test", "dev", "corpus")}
    return replace(
        config,
        data=replace(config.data, **sources),
        training=training,
        model=replace(model, base=_absolute(model.base)),
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


def _attach(encoder: Encoder, config: TrainConfig, reporter: Reporter) -> PeftModel:
    torch.manual_seed(config.output.seed)
    adapter = config.adapter
    adapted = attach_lora(encoder, rank=adapter.rank, alpha=adapter.alpha, dropout=adapter.dropout)
    trainable, total = trainable_parameters(adapted)
    reporter.note(f"trainable parameters: {trainable:,} of {total:,} ({trainable / total:.2%})")
    return adapted


def _trainer(
    encoder: Encoder,
    splits: Splits,
    texts: stages.Texts,
    config: TrainConfig,
    plan: Plan,
    folder: RunFolder,
    reporter: Reporter,
) -> Trainer:
    training = config.training
    objective = ContrastiveObjective(
        encoder=encoder,
        pairs=splits.train,
        qrels=splits.collection.qrels,
        query_tokens=texts.queries,
        passage_tokens=texts.passages,
        scale=training.scale,
        both_directions=training.both_directions,
    )
    dev = retrieval_task(
        splits.collection, splits.dev.query_ids, _dev_corpus(splits, training.dev_corpus, config.output.seed)
    )
    accumulated = f", {training.accumulate} accumulated a step" if training.accumulate > 1 else ""
    reporter.note(
        f"{plan.steps:,} steps of {plan.batch_size} pairs ({plan.batch_size - 1} in-batch negatives each"
        f"{accumulated}), learning rate {training.lr:g} after {plan.warmup_steps} warm-up steps, "
        f"dev {training.metric} every {plan.eval_steps} steps among {len(dev.passage_ids):,} passages"
    )
    return Trainer(
        model=encoder,
        objective=objective,
        evaluate=lambda: stages.evaluate(encoder, dev, texts, SilentReporter(), "dev set").means,
        pairs=splits.train,
        config=training,
        plan=plan,
        seed=config.output.seed,
        checkpoints=Checkpoints(folder.checkpoints, keep_last=training.keep_last),
        log_folder=folder.root,
        reporter=reporter,
        mixed_precision="fp16" if config.model.precision == "fp16" else "no",
    )


def _dev_corpus(splits: Splits, size: int, seed: int) -> IdArray:
    """The dev passages, filled up to `size` with training passages so that the search is not too easy."""
    dev = np.unique(splits.dev.passage_ids)
    others = np.setdiff1d(splits.train.passage_ids, dev)
    wanted = min(max(0, size - len(dev)), len(others))
    return np.concatenate([dev, np.random.default_rng(seed).choice(others, wanted, replace=False)])


def _save(
    adapted: PeftModel,
    encoder: Encoder,
    config: TrainConfig,
    collection: Collection,
    folder: RunFolder,
    reporter: Reporter,
) -> None:
    """Adapter and merged model to disk, and the proof that what lies there is what was trained."""
    save_adapter(adapted, folder.adapter, base=config.model.base)
    save_merged(config.model, folder.adapter, folder.model)
    cosine = check_saved(folder.model, encoder, collection.passages[:TEXTS_CHECKED])
    reporter.note(f"the saved model, loaded again, agrees with the trained one: cosine at least {cosine:.5f}")


def _data_facts(splits: Splits, test: RetrievalTask) -> dict[str, Any]:
    return {
        "train_pairs": len(splits.train),
        "dev_pairs": len(splits.dev),
        "test_pairs": len(splits.test),
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
