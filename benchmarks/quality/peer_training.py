"""The same settings in plain Sentence Transformers and PEFT: `python -m benchmarks.quality.peer_training RUN OUT`.

Rows are those that the run trained on, its mined negatives included; settings are those of its `config.toml`. As in
Sentence Transformers, the base's own dropout is on, and a passage that is known to answer another question of the batch
is a negative of that all the same.
"""

from __future__ import annotations

import dataclasses
import json
import math
import random
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from peft import LoraConfig, PeftModel, TaskType, get_peft_model
from sentence_transformers import (
    SentenceTransformer,
    SentenceTransformerTrainer,
    SentenceTransformerTrainingArguments,
)
from sentence_transformers.sentence_transformer.losses import MultipleNegativesRankingLoss
from sentence_transformers.sentence_transformer.training_args import BatchSamplers
from torch import Tensor
from transformers import TrainerCallback, TrainerControl, TrainerState

from benchmarks.dev import METRIC, Curve, Dev, read_dev, write_dev
from benchmarks.quality.peer_cell import MODEL, TEST, TRAINED
from embedtune.config import TrainConfig
from embedtune.config_file import load_toml
from embedtune.data.fingerprint import data_hashes
from embedtune.data.prepare import Splits, prepare
from embedtune.errors import ConfigError, DataError, EmbedtuneError
from embedtune.export.run_folder import RunFolder, write_json
from embedtune.measuring import dev_task
from embedtune.models.hardware import choose_device, peak_memory_bytes
from embedtune.models.plain import role_prompts
from embedtune.models.targets import adapter_targets
from embedtune.training.plan import make_plan

CARRIED_OVER = {
    "adapter": {"method", "rank", "alpha", "dropout", "rslora", "dora", "target_modules", "exclude_modules",
                "layers_to_transform", "last_layers"},
    "loss": {"scale", "both_directions"},
    "training": {"lr", "batch_size", "epochs", "max_steps", "accumulate", "schedule", "warmup_fraction", "weight_decay",
                 "max_grad_norm", "eval_steps", "dev_corpus"},
}  # fmt: skip
"""Settings that the peer has too."""
WITHOUT_EFFECT = {
    "training": {"recipe", "micro_batch_tokens", "gradient_checkpointing", "keep_last", "checkpoint_minutes",
                 "max_time", "deterministic"},
}  # fmt: skip
"""Settings that change how a run goes and not what it learns."""
NOT_OF_TRAINING = {"data", "model", "evaluation", "output"}
"""Sections that are the same for both."""


def train_peer(run: Path, out: Path) -> None:
    """Train as the run did, and write the model, the run's test and the facts to a folder.

    Raises:
        ConfigError: the method can't be had in plain PEFT and merged.
        DataError: the data is no longer what the run had.
    """
    source = RunFolder(run)
    config = load_toml(source.config)
    if config.adapter.method == "qlora":
        raise ConfigError("--method qlora has no peer here; expected lora or full")
    splits = prepare(config.data, seed=config.output.seed)
    _require_same_data(splits, source)
    out.mkdir(parents=True)
    write_test(splits, out / TEST)
    dev = dev_task(splits, size=config.training.dev_corpus, seed=config.output.seed)
    write_dev(dev, splits.collection, out / "dev.json")
    columns = read_columns(source.splits / "train.jsonl", seed=config.output.seed)
    device = choose_device(config.model.device)
    model, adapted = load_model(config, device)
    best = fit(model, config, columns, read_dev(out / "dev.json"), device, out)
    if adapted is not None:
        model[0].model = adapted.merge_and_unload()
    model.save_pretrained(str(out / MODEL), create_model_card=False)
    curve, trained = best.curve, sum(parameter.numel() for parameter in best.trainable)
    facts = {
        "steps": curve.steps[-1],
        "best_step": best.step,
        "batch_size": config.training.batch_size,
        "seconds": curve.seconds[-1],
        "peak_memory_bytes": peak_memory_bytes(device),
        "trainable_parameters": trained,
        "dev": [{"step": step, METRIC: value} for step, value in zip(curve.steps, curve.values, strict=True)],
    }
    negatives = len(columns) - 2
    write_json(out / TRAINED, {"train": facts, "negatives": negatives, "not_carried_over": not_carried_over(config)})


def write_test(splits: Splits, folder: Path) -> None:
    """The test questions, all that answers them and all passages that there are, as a BEIR folder."""
    collection = splits.collection
    (folder / "qrels").mkdir(parents=True)
    queries = sorted({int(query) for query in splits.test.query_ids})
    _write_texts(folder / "corpus.jsonl", dict(enumerate(collection.passages)))
    _write_texts(folder / "queries.jsonl", {query: collection.queries[query] for query in queries})
    lines = [f"{q}\t{p}\t{grade}\n" for q in queries for p, grade in collection.qrels[q].items()]
    (folder / "qrels" / "test.tsv").write_text("query-id\tcorpus-id\tscore\n" + "".join(lines), encoding="utf-8")


def read_columns(path: Path, *, seed: int) -> dict[str, list[str]]:
    """The rows as columns: anchor, positive, and as many of negatives as the row with most has.

    A row with fewer has its own again, one with none those of another row: the loss wants as many for each.
    """
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    negatives = [[row[key] for key in row if key.startswith("negative")] for row in rows]
    columns = {name: [row[name] for row in rows] for name in ("anchor", "positive")}
    generator, those_with_some = random.Random(seed), [own for own in negatives if own]
    filled = [own or generator.choice(those_with_some) for own in negatives] if those_with_some else []
    for place in range(max(map(len, filled), default=0)):
        columns[f"negative_{place + 1}"] = [own[place % len(own)] for own in filled]
    return columns


def load_model(config: TrainConfig, device: torch.device) -> tuple[SentenceTransformer, PeftModel | None]:
    """The base, and PEFT's view of its backbone; None if its own weights are trained."""
    torch.manual_seed(config.output.seed)
    model = SentenceTransformer(
        config.model.base,
        revision=config.model.revision,
        device=device.type,
        trust_remote_code=config.model.trust_remote_code,
        model_kwargs={"dtype": torch.float32},
    )
    if config.model.max_length is not None:
        model.max_seq_length = config.model.max_length
    given = {"query": config.model.query_prompt, "document": config.model.passage_prompt}
    own = role_prompts(model)
    model.prompts = {**(model.prompts or {}), **own, **{role: text for role, text in given.items() if text is not None}}
    backbone = model.transformers_model
    assert backbone is not None
    if config.adapter.method == "full":
        return model, None
    lora = LoraConfig(
        r=config.adapter.rank,
        lora_alpha=config.adapter.alpha,  # type: ignore[arg-type]  # PEFT divides it: any number will do
        lora_dropout=config.adapter.dropout,
        use_rslora=config.adapter.rslora,
        use_dora=config.adapter.dora,
        target_modules=adapter_targets(backbone, config.adapter),
        task_type=TaskType.FEATURE_EXTRACTION,
    )
    return model, get_peft_model(backbone, lora)


class BestOnDev(TrainerCallback):
    """Evaluates before the first step, every few steps and after the last one, and remembers the best weights."""

    def __init__(self, model: SentenceTransformer, curve: Curve, *, every: int) -> None:
        self.curve, self.step = curve, 0
        self.trainable = [parameter for parameter in model.parameters() if parameter.requires_grad]
        self._every = every
        self._weights: list[Tensor] = []

    def on_train_begin(self, args: Any, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        self._measure(0)

    def on_step_end(self, args: Any, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        if state.global_step % self._every == 0:
            self._measure(state.global_step)

    def on_train_end(self, args: Any, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        if self.curve.steps[-1] != state.global_step:
            self._measure(state.global_step)
        with torch.no_grad():
            for parameter, best in zip(self.trainable, self._weights, strict=True):
                parameter.copy_(best)

    def _measure(self, step: int) -> None:
        best = max(self.curve.values, default=-math.inf)
        if self.curve.measure(step) > best:
            self.step = step
            self._weights = [parameter.detach().to("cpu", copy=True) for parameter in self.trainable]


def fit(
    model: SentenceTransformer,
    config: TrainConfig,
    columns: dict[str, list[str]],
    dev: Dev,
    device: torch.device,
    folder: Path,
) -> BestOnDev:
    """Train with `SentenceTransformerTrainer`; the model has the weights of its best dev NDCG@10 then."""
    prompts = {role: text or "" for role, text in model.prompts.items()}

    def embed(texts: Sequence[str], role: str) -> Tensor:
        return model.encode(list(texts), prompt=prompts[role], show_progress_bar=False, convert_to_tensor=True)

    curve = Curve(
        device, lambda: dev.ndcg(embed(dev.queries, "query"), embed(dev.passages, "document")), target=math.inf
    )
    assert config.training.eval_steps is not None
    best = BestOnDev(model, curve, every=config.training.eval_steps)
    directions: dict[str, Any] = {"directions": ("query_to_doc", "doc_to_query"), "partition_mode": "per_direction"}
    SentenceTransformerTrainer(
        model=model,
        args=_arguments(config, len(columns["anchor"]), device, folder, _of_columns(prompts, columns)),
        train_dataset=Dataset.from_dict(columns),
        loss=MultipleNegativesRankingLoss(
            model, scale=config.loss.scale, **(directions if config.loss.both_directions else {})
        ),
        callbacks=[best],
    ).train()
    return best


def not_carried_over(config: TrainConfig) -> list[str]:
    """Settings of the training, other than the defaults, that the peer does without."""
    loss, training, mining = config.loss, config.training, config.mining
    if loss.loss == "contrastive":  # what auto comes to, and what the peer has
        loss = dataclasses.replace(loss, loss="auto")
    if not training.mined_epochs:  # then nothing was mined, whatever the settings of it
        training = dataclasses.replace(
            training, mined_epochs=None, mined_lr=None, mined_batch_size=None, mined_batches="auto", averaging="auto"
        )
        mining = type(mining)()
    if training.trainings == 1:  # as the peer does
        training = dataclasses.replace(training, trainings=None)
    config = dataclasses.replace(config, loss=loss, training=training, mining=mining)
    names = []
    for section in dataclasses.fields(config):
        given = getattr(config, section.name)
        default = type(given)()
        known = CARRIED_OVER.get(section.name, set()) | WITHOUT_EFFECT.get(section.name, set())
        if section.name not in NOT_OF_TRAINING:
            keys = (key.name for key in dataclasses.fields(given) if key.name not in known)
            names += [f"{section.name}.{key}" for key in keys if getattr(given, key) != getattr(default, key)]
    if training.mined_epochs and loss.bm25_weight is None:  # then BM25 teaches, as far as it can
        names.append("loss.bm25_weight")
    return names


def _arguments(
    config: TrainConfig, rows: int, device: torch.device, folder: Path, prompts: dict[str, str] | None
) -> SentenceTransformerTrainingArguments:
    training = config.training
    plan = make_plan(training, rows, method=config.adapter.method, init=config.adapter.init)
    return SentenceTransformerTrainingArguments(
        output_dir=str(folder / "trainer"),
        num_train_epochs=plan.epochs,
        max_steps=training.max_steps or -1,
        per_device_train_batch_size=plan.batch_size,
        gradient_accumulation_steps=training.accumulate,
        batch_sampler=BatchSamplers.NO_DUPLICATES,
        learning_rate=plan.lr,
        weight_decay=training.weight_decay,
        max_grad_norm=training.max_grad_norm,
        lr_scheduler_type="constant_with_warmup" if plan.schedule == "constant" else plan.schedule,
        warmup_steps=plan.warmup_steps,
        bf16=config.model.precision == "bf16",
        fp16=config.model.precision == "fp16",
        use_cpu=device.type == "cpu",
        seed=config.output.seed,
        prompts=prompts,
        save_strategy="no",
        logging_strategy="no",
        report_to="none",
        disable_tqdm=True,
    )


def _of_columns(prompts: dict[str, str], columns: Sequence[str] | dict[str, list[str]]) -> dict[str, str] | None:
    """Each column's prompt; None if there are none."""
    found = {column: prompts["query" if column == "anchor" else "document"] for column in columns}
    return found if any(found.values()) else None


def _require_same_data(splits: Splits, source: RunFolder) -> None:
    results = json.loads(source.results.read_text(encoding="utf-8"))
    hashes = data_hashes(splits)
    for split in ("dev", "test"):
        if hashes[split] != results["data"]["hashes"][split]:
            raise DataError(f"the {split} rows are no longer those of {source.root}; run that cell anew")


def _write_texts(path: Path, texts: dict[int, str]) -> None:
    lines = (json.dumps({"_id": str(key), "text": text}) for key, text in texts.items())
    path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")


def main(run: str, out: str) -> None:
    """Do it; exits by embedtune's codes."""
    try:
        train_peer(Path(run), Path(out))
    except EmbedtuneError as error:
        sys.stderr.write(f"embedtune: {error}\n")
        sys.exit(error.exit_code)


if __name__ == "__main__":
    main(*sys.argv[1:])
