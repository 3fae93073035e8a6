"""What a run can be told: one frozen dataclass a topic, one line a setting.

The command line, the TOML file and the Python API share these classes. `None` means "derived from the model and the
data"; the derived value is printed and saved in the run's `config.toml`.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal

import tyro

from embedtune.checks import require, require_choice, require_usable
from embedtune.durations import parse_seconds
from embedtune.errors import ConfigError

METRICS = (
    *(f"accuracy@{k}" for k in (1, 3, 5, 10)),
    *(f"precision@{k}" for k in (1, 3, 5, 10)),
    *(f"recall@{k}" for k in (1, 3, 5, 10, 100)),
    "mrr@10",
    "ndcg@10",
    "map@100",
)
"""The retrieval metrics that every evaluation reports."""


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """Which pairs to train on, which to hold out."""

    train: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="TRAIN")] = ""
    """Question/passage pairs: .jsonl, .json, .csv, .tsv or .parquet (each also .gz), a BEIR folder, a LlamaIndex
    JSON file, or a `datasets` hub id, OWNER/NAME[:CONFIG][@REVISION]."""
    test: str | None = None
    """Pairs to test on, in the same forms; without it a share of the training pairs is split off by passage."""
    dev: str | None = None
    """Pairs to choose the checkpoint on, in the same forms; without it a share of the training pairs is split off."""
    corpus: str | None = None
    """Further passages to search in at evaluation; no question needs to belong to them."""
    anchor_column: str | None = None
    """Column of the questions, if its name is not recognised."""
    positive_column: str | None = None
    """Column of the passages that answer them, if its name is not recognised."""
    negative_columns: tuple[str, ...] = ()
    """Columns of passages that don't answer the question, if their names are not recognised."""
    test_fraction: float = 0.1
    """Share of the pairs split off for the test, between 0 and 1."""
    dev_fraction: float = 0.1
    """Share of the remaining pairs split off to choose the checkpoint, between 0 and 1."""
    max_dev_pairs: int = 400
    """Most pairs that the split-off dev set takes from training."""
    near_duplicates: float = 0.6
    """Share of the shorter passage's five-word runs from which two passages count as one in splitting, up to 1; with 0
    only the same text does."""
    labels: str | None = None
    """The `suspects.jsonl` of a run with its "label" filled in: also, instead or no."""

    def __post_init__(self) -> None:
        require_usable(self)
        require(0 < self.test_fraction < 1, "test-fraction", self.test_fraction, "a number between 0 and 1")
        require(0 < self.dev_fraction < 1, "dev-fraction", self.dev_fraction, "a number between 0 and 1")
        require(self.max_dev_pairs >= 2, "max-dev-pairs", self.max_dev_pairs, "2 or more pairs")
        expected = "0 (off) or a number up to 1"
        require(0 <= self.near_duplicates <= 1, "near-duplicates", self.near_duplicates, expected)


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """Which model to start from, and how it is computed."""

    base: str = "sentence-transformers/all-MiniLM-L12-v2"
    """Hub id or folder of the encoder to fine-tune."""
    revision: str | None = None
    """Branch, tag or commit of a hub model."""
    max_length: int | None = None
    """Tokens read of a text; the model's own setting if not given."""
    precision: Literal["auto", "fp32", "bf16", "fp16"] = "auto"
    """Arithmetic of the encoder; auto takes bf16 where the hardware is faster with it."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where to compute; auto takes CUDA where there is any."""
    memory: Literal["auto", "low"] = "auto"
    """With 4-bit weights, low keeps no dequantised copy of them, and the base model too is measured in 4 bits."""
    query_prompt: str | None = None
    """Text before every query, in training, evaluation and encoding; the model's own if not given."""
    passage_prompt: str | None = None
    """Text before every passage, likewise."""
    trust_remote_code: bool = False
    """Run Python code that comes with the models named, those of --against too."""

    def __post_init__(self) -> None:
        require_usable(self)
        require_choice(self, "precision")
        require_choice(self, "device")
        require_choice(self, "memory")
        if self.max_length is not None:
            require(self.max_length >= 8, "max-length", self.max_length, "8 or more tokens")


@dataclass(frozen=True, kw_only=True)
class AdapterConfig:
    """What is trained."""

    method: Literal["lora", "qlora", "full"] = "lora"
    """A LoRA adapter; one on a base in 4 bits (NF4); or the encoder's own weights."""
    rank: int = 16
    """Rank of the adapter's update."""
    alpha: float = 32.0
    """The update is scaled by alpha / rank."""
    dropout: float = 0.0
    """Probability of dropping an input feature of the adapter; the base's own dropout is off."""
    rslora: bool = False
    """Scale the update by alpha / sqrt(rank) instead (rsLoRA)."""
    dora: bool = False
    """Train the size of each output's weights apart from their direction (DoRA); slower."""
    init: Literal["default", "gaussian", "pissa", "loftq"] = "default"
    """How the adapter starts: without effect, likewise with Gaussian noise, from the weights' main directions (PiSSA),
    or as a correction of the 4-bit error (LoftQ, for qlora)."""
    target_modules: tuple[str, ...] = ("all-linear",)
    """Modules that get an adapter: all-linear, ends of names such as query, or regular expressions for whole names."""
    exclude_modules: tuple[str, ...] = ()
    """Modules among those that get none, named in the same way."""
    layers_to_transform: tuple[int, ...] = ()
    """Transformer layers that are trained, counted from 0; all if not given."""
    last_layers: int | None = None
    """Train the last so many transformer layers only."""
    bias: Literal["none", "all", "lora_only"] = "none"
    """Biases that are trained too: all of the encoder's, or those of the layers with an adapter."""
    modules_to_save: tuple[str, ...] = ()
    """Modules that are trained in full beside the adapter and saved with it, such as LayerNorm."""
    start_adapter: str | None = None
    """Folder of a LoRA adapter in PEFT's format to go on training; its own settings are kept."""
    merge_into: Literal["quantised", "original"] = "quantised"
    """Weights that a qlora adapter is merged into: those it was trained on, or the original ones."""

    @property
    def trains_weights(self) -> bool:
        """Whether parameters of the base itself are trained."""
        return self.method == "full" or self.bias != "none" or bool(self.modules_to_save)

    def __post_init__(self) -> None:
        require_usable(self)
        for name in ("method", "init", "bias", "merge_into"):
            require_choice(self, name)
        require(self.rank >= 1, "rank", self.rank, "1 or more")
        require(self.alpha > 0, "alpha", self.alpha, "a number above 0")
        require(0 <= self.dropout < 1, "dropout", self.dropout, "a number from 0 up to, but not, 1")
        require(bool(self.target_modules), "target-modules", "empty", "all-linear or names of modules")
        require(
            all(n >= 0 for n in self.layers_to_transform), "layers-to-transform", self.layers_to_transform, "0 or more"
        )
        if self.last_layers is not None:
            require(self.last_layers >= 1, "last-layers", self.last_layers, "1 or more")
        self._refuse_contradictions()

    def _refuse_contradictions(self) -> None:
        shaping = "rank alpha dropout rslora dora init target_modules exclude_modules bias modules_to_save"
        shaped = tuple(shaping.split())
        if self.method == "full":
            self._refuse((*shaped, "start_adapter"), "--method full trains the weights themselves, without an adapter")
        if self.start_adapter is not None:
            layers = ("layers_to_transform", "last_layers")
            self._refuse((*shaped, *layers), "--start-adapter goes on with an adapter as it is")
        if self.method != "qlora":
            self._refuse(("merge_into",), f"--method {self.method} has no 4-bit weights to merge into")
        if self.last_layers is not None:
            self._refuse(("layers_to_transform",), "--last-layers says which layers are trained")
        if self.dora and self.init in ("pissa", "loftq"):
            raise ConfigError(f"--init {self.init} and --dora both redefine the weights.\nLeave one of them out.")
        if self.init == "loftq" and self.method != "qlora":
            raise ConfigError(
                f"--init loftq corrects the error of 4-bit weights, and --method {self.method} has none.\n"
                "Type:  --method qlora --init loftq, or another --init."
            )
        if self.init == "pissa" and self.method == "qlora":
            raise ConfigError(
                "--init pissa takes the main directions out of the weights, which --method qlora holds in 4 bits.\n"
                "Type:  --method qlora --init loftq, or --method lora --init pissa."
            )

    def _refuse(self, names: tuple[str, ...], reason: str) -> None:
        """Raise if one of these options has another value than it has by default."""
        for option in dataclasses.fields(self):
            if option.name in names and getattr(self, option.name) != option.default:
                raise ConfigError(f"{reason}; --{option.name.replace('_', '-')} would have no effect. Leave it out.")


@dataclass(frozen=True, kw_only=True)
class TrainingConfig:
    """The loss, the optimiser and the steps."""

    lr: float | None = None
    """Peak learning rate; 2e-3 for adapters, 5e-4 for those with the PiSSA start and 1e-4 for full fine-tuning if not
    given."""
    optimizer: Literal["adamw", "adamw8bit"] = "adamw"
    """AdamW, or bitsandbytes' AdamW with moments in 8 bits."""
    batch_size: int | None = None
    """Pairs in a contrastive batch; every other passage in it is a negative. Fewer for few pairs if not given."""
    epochs: float = 2.0
    """Passes over the training pairs."""
    max_steps: int | None = None
    """Optimiser steps to take, instead of `epochs`."""
    accumulate: int = 1
    """Contrastive batches whose gradients make one optimiser step. It does not add in-batch negatives."""
    passage_once: bool = False
    """Keep the questions of a passage in one batch, where it is embedded once for all of them: more pairs a second, but
    fewer negatives for each."""
    micro_batch_tokens: int | None = None
    """Tokens that go through the encoder at a time, in training; more negatives than memory allows come from gradient
    caching. Found from the free memory if not given."""
    schedule: Literal["cosine", "linear", "constant"] = "cosine"
    """How the learning rate falls after the warm-up."""
    warmup_fraction: float = 0.1
    """Share of the steps in which the learning rate rises to its peak, from 0 up to 1."""
    weight_decay: float = 0.01
    """AdamW's weight decay."""
    gradient_checkpointing: bool = False
    """Compute each layer again in the backward pass instead of keeping its activations: less memory, a third slower."""
    max_grad_norm: float = 1.0
    """Gradients are scaled down to this norm; 0 turns it off."""
    scale: float = 20.0
    """Factor on the cosine similarities in the loss, the inverse of the temperature."""
    both_directions: bool = False
    """Also rank the batch's questions for each passage."""
    eval_steps: int | None = None
    """Optimiser steps between evaluations on the dev set; about five in a run if not given."""
    metric: str = "ndcg@10"
    """Dev metric that chooses the checkpoint."""
    patience: int | None = None
    """Stop after this many evaluations without a better dev metric; never if not given."""
    keep_last: int = 2
    """Checkpoints to keep, besides the best one; 2 or more, as the newest may be damaged."""
    checkpoint_minutes: float = 10.0
    """Minutes between checkpoints, besides those at evaluations; 0 for one after every step."""
    max_time: str | None = None
    """Save and stop in time for the run to end within this, such as 90s, 25m or 1h30m; --resume goes on."""
    deterministic: bool = False
    """Have a GPU compute the same bits every time; slower. A CPU does in any case."""
    dev_corpus: int = 2_000
    """Passages to search in at each dev evaluation: the dev passages, filled up with training passages."""

    def __post_init__(self) -> None:
        require_usable(self)
        require_choice(self, "schedule")
        require_choice(self, "optimizer")
        require(self.lr is None or self.lr > 0, "lr", self.lr, "a number above 0, such as 2e-3")
        if self.batch_size is not None:
            require(self.batch_size >= 2, "batch-size", self.batch_size, "2 or more pairs")
        require(self.epochs > 0, "epochs", self.epochs, "a number above 0")
        for name in ("max_steps", "eval_steps", "patience", "micro_batch_tokens"):
            value = getattr(self, name)
            require(value is None or value >= 1, name.replace("_", "-"), value, "1 or more")
        require(self.accumulate >= 1, "accumulate", self.accumulate, "1 or more batches")
        require(0 <= self.warmup_fraction < 1, "warmup-fraction", self.warmup_fraction, "a number from 0 up to 1")
        require(self.weight_decay >= 0, "weight-decay", self.weight_decay, "0 or more")
        require(self.max_grad_norm >= 0, "max-grad-norm", self.max_grad_norm, "0 (off) or more")
        require(self.scale > 0, "scale", self.scale, "a number above 0, such as 20")
        require(self.metric in METRICS, "metric", self.metric, f"one of {', '.join(METRICS)}")
        require(self.keep_last >= 2, "keep-last", self.keep_last, "2 or more checkpoints")
        require(self.checkpoint_minutes >= 0, "checkpoint-minutes", self.checkpoint_minutes, "0 or more minutes")
        if self.max_time is not None:
            parse_seconds(self.max_time, option="max-time")
        require(self.dev_corpus >= 1, "dev-corpus", self.dev_corpus, "1 or more passages")


@dataclass(frozen=True, kw_only=True)
class EvaluationConfig:
    """What is measured beside the base and the tuned model, and what is made of it."""

    against: tuple[str, ...] = ()
    """Further models to measure on the same questions and passages: hub ids or folders."""
    forgetting: tuple[str, ...] = ()
    """Files that tell what the model forgot, beside the built-in sets: graded pairs of sentences (sentence1, sentence2,
    score), or questions and passages in the forms of TRAIN."""
    blend: float | Literal["auto"] = 1.0
    """Weight of the tuned model in what is saved, from 0 (the base) to 1; auto takes the one recommended on the dev set
    and the forgetting sets."""

    def __post_init__(self) -> None:
        require_usable(self)
        in_range = isinstance(self.blend, (int, float)) and not isinstance(self.blend, bool) and 0 <= self.blend <= 1
        require(self.blend == "auto" or in_range, "blend", self.blend, "a number from 0 to 1, or auto")


@dataclass(frozen=True, kw_only=True)
class OutputConfig:
    """Where the run goes."""

    out: Path = Path("embedtune-run")
    """Folder to write the model, the adapter, the results and the checkpoints to."""
    seed: int = 0
    """Drives the splits, the data order, the adapter's start and the resampling."""
    resume: bool = False
    """Go on with the run in the output folder from its last checkpoint."""

    def __post_init__(self) -> None:
        require_usable(self)
        require(self.seed >= 0, "seed", self.seed, "0 or more")


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """Everything `embedtune train` can be told."""

    data: DataConfig = field(default_factory=DataConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    adapter: AdapterConfig = field(default_factory=AdapterConfig)
    training: TrainingConfig = field(default_factory=TrainingConfig)
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)
    output: OutputConfig = field(default_factory=OutputConfig)

    def __post_init__(self) -> None:
        if self.model.memory == "low" and self.adapter.method != "qlora":
            raise ConfigError(
                f"--memory low is about 4-bit weights, and --method {self.adapter.method} has none.\n"
                "Type:  --method qlora --memory low, or try --gradient-checkpointing."
            )
