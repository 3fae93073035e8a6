"""What every runner of a benchmark is told, as a JSON file, so that all of them do the same work."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

from embedtune.models.hardware import PrecisionName

TRAIN_RUNNERS = ("embedtune", "embedtune-fp32", "st-fp32", "st-bf16", "st-fp32-nodropout")
ENCODE_RUNNERS = ("embedtune", "embedtune-fp32", "st-fp32", "st-bf16")

TrainRunner = Literal["embedtune", "embedtune-fp32", "st-fp32", "st-bf16", "st-fp32-nodropout"]
EncodeRunner = Literal["embedtune", "embedtune-fp32", "st-fp32", "st-bf16"]
DeviceName = Literal["cpu", "cuda"]

Method = Literal["lora", "qlora", "full"]


@dataclass(frozen=True)
class Row:
    """Options of `embedtune train` that a row of the table of methods stands for."""

    method: Method
    low_memory: bool = False


METHODS = {"lora": Row("lora"), "qlora": Row("qlora"), "qlora-low": Row("qlora", low_memory=True), "full": Row("full")}
CHECKPOINTING = "+gc"
"""Ends the name of a runner that does it with gradient checkpointing."""

WARMUP_STEPS = 1
"""Training steps before the timed ones."""


@dataclass(frozen=True, kw_only=True)
class TrainJob:
    """Training steps over given batches."""

    base: str
    """Hub id or folder of the encoder."""
    batches: str
    """File of the batches, see `batches.read_batches`; the first `WARMUP_STEPS` are not timed."""
    batch_size: int
    max_length: int
    rank: int
    alpha: float
    device: DeviceName
    lr: float
    weight_decay: float
    scale: float
    seed: int


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


def cells_of(method: str) -> tuple[str, str]:
    """Runners of a method: without gradient checkpointing and with it."""
    return method, method + CHECKPOINTING


def row_of(cell: str) -> Row:
    """What such a runner is to do."""
    return METHODS[cell.removesuffix(CHECKPOINTING)]


Job = TrainJob | EncodeJob | MethodJob


def save_job(job: Job, path: Path) -> None:
    path.write_text(json.dumps(asdict(job)), encoding="utf-8")


def load_train_job(path: Path) -> TrainJob:
    return TrainJob(**json.loads(path.read_text(encoding="utf-8")))


def load_method_job(path: Path) -> MethodJob:
    return MethodJob(**json.loads(path.read_text(encoding="utf-8")))


def load_encode_job(path: Path) -> EncodeJob:
    return EncodeJob(**json.loads(path.read_text(encoding="utf-8")))
