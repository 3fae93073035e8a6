"""Weights that a run goes back to and averages, in files of their own beside its checkpoints.

The mean of the ends of trainings from the same start is often better than each of them, as they lie in one basin
("model soups", Wortsman et al. 2022, https://arxiv.org/abs/2203.05482; the uniform mean).
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from embedtune.atomic import replacing, why_not_written
from embedtune.errors import StorageError
from embedtune.training.checkpoint import trainable_tensors, weights_fit


def write_weights(path: Path, model: nn.Module) -> None:
    """Write the trainable weights with their checksum, whole or not at all.

    Raises:
        StorageError: the file can't be written.
    """
    weights = trainable_tensors(model)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with replacing(path) as unfinished:
            save_file(weights, unfinished, metadata={"sha256": _checksum(weights)})
    except (OSError, SafetensorError) as error:
        raise StorageError(f"{path} can't be written: {why_not_written(error, path)}") from error


def read_weights(path: Path, model: nn.Module) -> dict[str, Tensor]:
    """The weights that `write_weights` wrote of this model, by name, on the CPU.

    Raises:
        StorageError: they are missing, damaged or another model's.
    """
    try:
        with safe_open(path, framework="pt") as file:
            weights = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (it is no dict)
            written = (file.metadata() or {}).get("sha256")
        if not weights_fit(weights, model):
            raise ValueError("they have other names or shapes than what this run trains")
        if _checksum(weights) != written:
            raise ValueError("they are not what was written")
    except (OSError, SafetensorError, ValueError) as error:
        raise StorageError(
            f"{path}: the weights that a phase of this run began or ended with can't be read: {error}\n"
            "It can't go on to the same weights without them. Leave --resume out and give another --out."
        ) from error
    return weights


def average_with(model: nn.Module, weights: Mapping[str, Tensor]) -> None:
    """Give the model the mean of its trainable weights and these, taken in fp32."""
    for name, own in trainable_tensors(model).items():
        own.copy_((own.float() + weights[name].to(own.device).float()) / 2)


def _checksum(weights: Mapping[str, Tensor]) -> str:
    digest = hashlib.sha256()
    for name in sorted(weights):
        digest.update(name.encode())
        digest.update(weights[name].cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
