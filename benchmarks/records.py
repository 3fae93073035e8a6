"""What the runners measure, and its way through a JSON file."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Agreement:
    """What a runner computes before anything is timed; runners must agree on it."""

    runner: str
    precision: str
    """"fp32", "bf16" or "fp16"; says how closely it can agree."""
    embeddings: str
    """File of the embeddings, .npy, one row a text."""
    loss: float | None = None
    """Of the first batch; None where nothing is trained."""
    tokens: int | None = None
    """Tokens of the first batch, padding not counted."""
    trainable_parameters: int | None = None
    weights: str | None = None
    """Formats that they are held in, see `measure.held_weights`."""


@dataclass(frozen=True, kw_only=True)
class TrainMeasurement:
    """One process that trained for some steps."""

    runner: str
    precision: str
    step_seconds: list[float]
    """Each timed step: forward, backward, clipping, optimiser; the batch is at hand."""
    data_seconds: float
    """Tokenising and collating, a step."""
    loaded_bytes: int
    """Memory held after the model was loaded and the adapter attached."""
    peak_bytes: int
    """Most memory held."""
    mean_loss: float
    """Over all steps, the warm-up included."""
    weights: str
    """Formats that they are held in, see `measure.held_weights`."""


@dataclass(frozen=True, kw_only=True)
class QualityMeasurement:
    """One process that trained until a dev metric was reached, or to the end."""

    runner: str
    precision: str
    weights: str
    steps: list[int]
    """Done at each evaluation, the first before any step."""
    seconds: list[float]
    """Of training up to each evaluation: tokenising and every step, no evaluation."""
    ndcg: list[float]
    """Dev NDCG@10 at each evaluation."""


@dataclass(frozen=True, kw_only=True)
class MethodMeasurement:
    """One process that loaded an encoder and trained it for some steps by one method."""

    cell: str
    precision: str
    step_seconds: list[float]
    """Each timed step: forward, backward, clipping, optimiser; the batch is at hand."""
    batch_size: int
    tokens: int
    """In all steps, the warm-up included."""
    trainable_parameters: int
    process_bytes: int
    """Memory held before the model was loaded; 0 on a CUDA device."""
    loaded_bytes: int
    """Memory held once it was trainable: loaded, in 4 bits, with its adapter, as the method has it."""
    load_peak_bytes: int
    """Most memory held on the way there."""
    peak_bytes: int
    """Most memory held in the steps."""
    losses: list[float]
    """Of all steps; the first one's is that of the weights as they start."""
    notes: list[str]
    """What embedtune says of the model, such as what 4 bits saved."""


@dataclass(frozen=True, kw_only=True)
class EncodeMeasurement:
    """One process that embedded the texts."""

    runner: str
    precision: str
    texts: int
    seconds: float
    """From strings to embeddings in host memory, tokenising included."""
    loaded_bytes: int
    peak_bytes: int


@dataclass(frozen=True, kw_only=True)
class Workload:
    """The work in the timed batches; the same for every runner."""

    pairs: int
    tokens: int
    """Padding not counted."""
    padding: float
    """Share of positions that are padding if questions and passages are padded, each to their longest in a batch."""
    flops: float
    """See `workload.training_flops`."""
    feed_forward: tuple[int, int, int]
    """A batch's tokens through the model's first feed-forward layer: rows, input features, output features."""


@dataclass(frozen=True, kw_only=True)
class GemmRates:
    """Floating-point operations a second of matrix products on this device: the floor under a step."""

    shape: tuple[int, int, int]
    """Rows, input features, output features of a linear layer of the model."""
    fp32: float
    """Of that layer."""
    bf16: float
    square_fp32: float
    """Of the fastest square product."""
    square_bf16: float
    best_squares: tuple[int, int]
    """Sizes of the fastest square products in fp32 and in bf16."""

    def layer(self, precision: str) -> float:
        """The rate of the layer in that precision; fp16 counts as bf16."""
        return self.fp32 if precision == "fp32" else self.bf16

    def best(self, precision: str) -> float:
        """The highest rate that was seen in that precision."""
        return max(self.layer(precision), self.square_fp32 if precision == "fp32" else self.square_bf16)
