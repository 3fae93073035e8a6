"""The tensors that were trained, kept beside a model that they were merged into: it does not give them back.

Sentence Transformers' trainer needs them to resume, and to load the best checkpoint.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from embedtune.errors import ModelError

TRAINED = "trained.safetensors"
"""Beside a saved model: the tensors of the adapter that was merged into it."""


def trained_tensors(model: nn.Module) -> dict[str, Tensor]:
    """The trainable parameters by name, detached."""
    return {name: parameter.detach() for name, parameter in model.named_parameters() if parameter.requires_grad}


def write_trained(tensors: Mapping[str, Tensor], folder: Path) -> None:
    """Write them beside the model of that folder; with none, what lies there is removed."""
    (folder / TRAINED).unlink(missing_ok=True)
    if tensors:
        save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, folder / TRAINED)


def read_trained(folder: Path) -> dict[str, Any] | None:
    """What `write_trained` wrote; None if there is nothing."""
    file = folder / TRAINED
    return load_file(file) if file.is_file() else None


def check_holds_trained(state: Mapping[str, Any], model: nn.Module) -> None:
    """Whether a state has all that is trained in the model.

    Raises:
        ModelError: tensors are missing, as in a model that an adapter was merged into.
    """
    trained = trained_tensors(model)
    if missing := sorted(trained.keys() - state.keys()):
        raise ModelError(
            f"this state holds no {missing[0]} ({len(missing)} of {len(trained)} trained tensors are missing), so "
            f"it is not one of this adapter.\nExpected a folder with {TRAINED}, as save_pretrained writes it, of "
            "an encoder with the same method, rank and layers."
        )
