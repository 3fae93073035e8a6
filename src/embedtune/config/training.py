"""The optimiser and the steps."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

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
GRADED_METRIC = "spearman"
"""The dev metric of graded pairs."""


@dataclass(frozen=True, kw_only=True)
class TrainingConfig:
    """The optimiser and the steps."""

    recipe: Literal["quick", "default", "thorough"] = "default"
    """What the settings that are left open come to: quick takes one pass without mined negatives, default one pass and
    two with them, thorough does that three times and takes the mean of the weights, of steps and of trainings."""
    trainings: int | None = None
    """Complete trainings in other orders of the pairs, whose weights' mean is kept; if not given 1, with --recipe
    thorough 3."""
    lr: float | None = None
    """Peak learning rate; if not given 2e-3 for adapters, 5e-4 for those with the PiSSA start and 1e-4 for full
    fine-tuning, and less for encoders wider than 384, in proportion."""
    optimizer: Literal["adamw", "adamw8bit"] = "adamw"
    """AdamW, or bitsandbytes' AdamW with moments in 8 bits."""
    batch_size: int | None = None
    """Pairs in a contrastive batch; every other passage in it is a negative. Fewer for few pairs if not given."""
    epochs: float | None = None
    """Passes over the training pairs as they are; by the recipe if not given."""
    max_steps: int | None = None
    """Optimiser steps to take, instead of `epochs`; no negatives are mined then, unless `mined_epochs` is given."""
    mined_epochs: float | None = None
    """Further passes, with hard negatives that the model so far has mined; 0 for none. By the recipe if not given."""
    mined_lr: float | None = None
    """Peak learning rate of these; half of `lr` if not given."""
    mined_batches: Literal["auto", "neighbours", "shuffled"] = "auto"
    """Which pairs share a batch in these: neighbours, whose passages are hard negatives of one another's questions, so
    that none has to be added; shuffled, any, and each pair gets `hard_negatives` added; auto takes neighbours, and
    shuffled with `passage_once`."""
    mined_batch_size: int | None = None
    """Pairs in a batch of these; `batch_size` if not given, or half of it where the batches are shuffled."""
    accumulate: int = 1
    """Contrastive batches whose gradients make one optimiser step. It does not add in-batch negatives."""
    passage_once: bool = False
    """Keep the questions of a passage in one batch, where it is embedded once for all of them: more pairs a second, but
    fewer negatives for each."""
    micro_batch_tokens: int | None = None
    """Tokens that go through the encoder at a time, in training; more negatives than memory allows come from gradient
    caching. Found from the free memory if not given."""
    averaging: Literal["auto", "none", "swa"] = "auto"
    """Stochastic weight averaging (swa): in the passes with mined negatives the mean of the weights of all steps since
    these began is measured and kept; auto is swa with --recipe thorough."""
    schedule: Literal["auto", "cosine", "linear", "constant"] = "auto"
    """How the learning rate falls after the warm-up; auto is constant where steps are averaged, else cosine."""
    warmup_fraction: float = 0.1
    """Share of the steps in which the learning rate rises to its peak, from 0 up to 1."""
    weight_decay: float = 0.01
    """AdamW's weight decay."""
    gradient_checkpointing: bool = False
    """Compute each layer again in the backward pass instead of keeping its activations: less memory, a third slower."""
    max_grad_norm: float = 1.0
    """Gradients are scaled down to this norm; 0 turns it off."""
    eval_steps: int | None = None
    """Optimiser steps between evaluations on the dev set; if not given there are three to ten in a run, as many as it
    is worth. The model that mines is evaluated in any case."""
    metric: str = "ndcg@10"
    """Dev metric that chooses the checkpoint; of graded pairs it is spearman."""
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
    """Passages to search in at each dev evaluation: the dev passages, filled up with others that answer no test
    question."""

    def __post_init__(self) -> None:
        require_usable(self)
        require_choice(self, "schedule")
        require_choice(self, "averaging")
        require_choice(self, "optimizer")
        require(self.lr is None or self.lr > 0, "lr", self.lr, "a number above 0, such as 2e-3")
        if self.batch_size is not None:
            require(self.batch_size >= 2, "batch-size", self.batch_size, "2 or more pairs")
        require_choice(self, "recipe")
        require(self.epochs is None or self.epochs > 0, "epochs", self.epochs, "a number above 0")
        require(self.mined_epochs is None or self.mined_epochs >= 0, "mined-epochs", self.mined_epochs, "0 or more")
        require(self.mined_lr is None or self.mined_lr > 0, "mined-lr", self.mined_lr, "a number above 0, such as 1e-3")
        if self.mined_batch_size is not None:
            require(self.mined_batch_size >= 2, "mined-batch-size", self.mined_batch_size, "2 or more pairs")
        require_choice(self, "mined_batches")
        if self.mined_batches == "neighbours" and self.passage_once:
            raise ConfigError(
                "--passage-once keeps the questions of a passage in one batch, and --mined-batches neighbours other "
                "passages.\nType:  --mined-batches shuffled, or leave one of the two out."
            )
        for name in ("trainings", "max_steps", "eval_steps", "patience", "micro_batch_tokens"):
            value = getattr(self, name)
            require(value is None or value >= 1, name.replace("_", "-"), value, "1 or more")
        require(self.accumulate >= 1, "accumulate", self.accumulate, "1 or more batches")
        require(0 <= self.warmup_fraction < 1, "warmup-fraction", self.warmup_fraction, "a number from 0 up to 1")
        require(self.weight_decay >= 0, "weight-decay", self.weight_decay, "0 or more")
        require(self.max_grad_norm >= 0, "max-grad-norm", self.max_grad_norm, "0 (off) or more")
        metrics = (*METRICS, GRADED_METRIC)
        require(self.metric in metrics, "metric", self.metric, f"one of {', '.join(metrics)}")
        require(self.keep_last >= 2, "keep-last", self.keep_last, "2 or more checkpoints")
        require(self.checkpoint_minutes >= 0, "checkpoint-minutes", self.checkpoint_minutes, "0 or more minutes")
        if self.max_time is not None:
            parse_seconds(self.max_time, option="max-time")
        require(self.dev_corpus >= 1, "dev-corpus", self.dev_corpus, "1 or more passages")

    @property
    def mined_in(self) -> Literal["neighbours", "shuffled"]:
        """`mined_batches`, where it is left open too."""
        if self.mined_batches != "auto":
            return self.mined_batches
        return "shuffled" if self.passage_once else "neighbours"
