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


@dataclass(frozen=True, kw_only=True)
class GemmRates:
    """Floating-point operations a second of one large linear layer on this device: the floor under a step."""

    shape: tuple[int, int, int]
    """Rows, input features, output features."""
    fp32: float
    bf16: float
