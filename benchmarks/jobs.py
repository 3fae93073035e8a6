"""What every runner of a benchmark is told, as a JSON file, so that all of them do the same work; and who they are."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

from embedtune.models.hardware import PrecisionName

QualityRunner = Literal[
    "embedtune",
    "embedtune-fp32",
    "embedtune-low",
    "st-fp32",
    "st-bf16",
    "st-flash",
    "st-fp32-nodropout",
    "st-bf16-nodropout",
    "unsloth",
    "unsloth-unpad",
]
TrainRunner = Literal[QualityRunner, "embedtune-cached", "unsloth-compile"]
"""Compiling takes too many steps for a run that ends with a quality, and how a batch is split does not change it."""
EncodeRunner = Literal["embedtune", "embedtune-fp32", "st-fp32", "st-bf16", "st-flash"]
DeviceName = Literal["cpu", "cuda"]
Method = Literal["lora", "qlora", "full"]
AdapterMethod = Literal["lora", "qlora"]


@dataclass(frozen=True, kw_only=True)
class Ours:
    """How a runner of embedtune differs from `embedtune train` as it comes."""

    precision: PrecisionName = "auto"
    low_memory: bool = False
    """`--memory low`: no dequantised copy of 4-bit weights."""
    cached: bool = False
    """Gradients are cached, as with a peer that is given a mini-batch; else only where a batch does not fit."""


@dataclass(frozen=True, kw_only=True)
class Peer:
    """How a peer's runner differs from Sentence Transformers + PEFT as shipped."""

    precision: Literal["fp32", "bf16"]
    """What it computes in."""
    unsloth: bool = False
    """Loaded and adapted by unsloth; its weights are held in bf16."""
    flash: bool = False
    """FlashAttention, with which Sentence Transformers pads nothing; its weights are held in bf16."""
    dropout: bool = True
    """The base model's own."""
    unpadding: bool = False
    """unsloth's `use_unpadding="auto"`."""
    compiled: bool = False
    """The torch.compile that unsloth turns on by itself in long runs."""


OURS: dict[str, Ours] = {
    "embedtune": Ours(),
    "embedtune-fp32": Ours(precision="fp32"),
    "embedtune-low": Ours(low_memory=True),
    "embedtune-cached": Ours(cached=True),
}
PEERS: dict[str, Peer] = {
    "st-fp32": Peer(precision="fp32"),
    "st-bf16": Peer(precision="bf16"),
    "st-flash": Peer(precision="bf16", flash=True),
    "st-fp32-nodropout": Peer(precision="fp32", dropout=False),
    "st-bf16-nodropout": Peer(precision="bf16", dropout=False),
    "unsloth": Peer(precision="bf16", unsloth=True),
    "unsloth-unpad": Peer(precision="bf16", unsloth=True, unpadding=True),
    "unsloth-compile": Peer(precision="bf16", unsloth=True, compiled=True),
}
DEFAULT_TRAIN_RUNNERS: tuple[TrainRunner, ...] = (
    "embedtune",
    "st-fp32",
    "st-bf16",
    "st-flash",
    "unsloth",
    "unsloth-unpad",
)
DEFAULT_ENCODE_RUNNERS: tuple[EncodeRunner, ...] = ("embedtune", "st-fp32", "st-bf16", "st-flash")


@dataclass(frozen=True)
class Row:
    """Options of `embedtune train` that a row of the table of methods stands for."""

    method: Method
    low_memory: bool = False


METHODS = {"lora": Row("lora"), "qlora": Row("qlora"), "qlora-low": Row("qlora", low_memory=True), "full": Row("full")}
CHECKPOINTING = "+gc"
"""Ends the name of a runner that does it with gradient checkpointing."""


@dataclass(frozen=True, kw_only=True)
class TrainJob:
    """Training steps over given batches."""

    base: str
    """Hub id or folder of the encoder."""
    batches: str
    """File of the batches, see `batches.read_batches`."""
    batch_size: int
    max_length: int
    method: AdapterMethod
    rank: int
    alpha: float
    device: DeviceName
    lr: float
    schedule: Literal["cosine", "linear", "constant"]
    warmup_fraction: float
    """Share of the steps in which the learning rate rises."""
    weight_decay: float
    scale: float
    seed: int
    warmup: int = 1
    """First steps that are not timed."""
    mini_batch: int | None = None
    """Texts that a peer and `embedtune-cached` embed at a time, gradients cached; all at once if not given."""


@dataclass(frozen=True, kw_only=True)
class QualityJob:
    """Training until a dev metric is reached."""

    train: TrainJob
    dev: str
    """File of the dev set, see `dev.read_dev`."""
    eval_steps: int
    """Steps between evaluations."""
    target: float
    """The dev NDCG@10 that ends the training."""

    @property
    def device(self) -> DeviceName:
        return self.train.device


@dataclass(frozen=True, kw_only=True)
class EncodeJob:
    """Texts to embed."""

    base: str
    """Hub id or folder of the encoder."""
    texts: str
    """JSON file of a list of strings."""
    max_length: int
    device: DeviceName


@dataclass(frozen=True, kw_only=True)
class MethodJob:
    """Training steps of one encoder over given batches, by whichever method."""

    base: str
    """Folder of the encoder."""
    batches: str
    """File of the batches, see `batches.read_batches`; the first `warmup` are not timed."""
    batch_size: int
    max_length: int
    device: DeviceName
    precision: PrecisionName
    optimizer: Literal["adamw", "adamw8bit"]
    warmup: int
    seed: int


@dataclass(frozen=True, kw_only=True)
class GemmJob:
    """Matrix products to time."""

    device: DeviceName
    shape: tuple[int, int, int]
    """Rows, input features, output features of the layer of the model."""


Job = TrainJob | QualityJob | EncodeJob | MethodJob | GemmJob


def cells_of(method: str) -> tuple[str, str]:
    """Runners of a method: without gradient checkpointing and with it."""
    return method, method + CHECKPOINTING


def row_of(cell: str) -> Row:
    """What such a runner is to do."""
    return METHODS[cell.removesuffix(CHECKPOINTING)]


def save_job(job: Job, path: Path) -> None:
    path.write_text(json.dumps(asdict(job)), encoding="utf-8")


def load_train_job(path: Path) -> TrainJob:
    return TrainJob(**json.loads(path.read_text(encoding="utf-8")))


def load_quality_job(path: Path) -> QualityJob:
    found = json.loads(path.read_text(encoding="utf-8"))
    return QualityJob(**{**found, "train": TrainJob(**found["train"])})


def load_method_job(path: Path) -> MethodJob:
    return MethodJob(**json.loads(path.read_text(encoding="utf-8")))


def load_encode_job(path: Path) -> EncodeJob:
    return EncodeJob(**json.loads(path.read_text(encoding="utf-8")))


def load_gemm_job(path: Path) -> GemmJob:
    found = json.loads(path.read_text(encoding="utf-8"))
    return GemmJob(**{**found, "shape": tuple(found["shape"])})
