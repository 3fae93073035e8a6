"""An adapter from a folder, to go on training: as PEFT, unsloth and embedtune itself write them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from peft import LoraConfig, PeftConfig, PeftModel, get_peft_model, load_peft_weights, set_peft_model_state_dict
from safetensors import SafetensorError
from torch import Tensor

from embedtune.errors import ConfigError
from embedtune.models.encoder import Encoder
from embedtune.paths import expanded

_CHANGE_THE_BASE = ("pissa", "olora", "corda", "loftq", "lora_ga")
"""Ways to start an adapter that belong to a base with other weights than the published one."""


def load_adapter(encoder: Encoder, folder: str) -> PeftModel:
    """Attach the adapter in that folder, trainable, in place.

    Raises:
        ConfigError: there is no LoRA adapter, or it is not one for this model.
    """
    config, weights = read_adapter(folder)
    config.inference_mode = False
    # PEFT writes this model's own name there, and warns if it is another one, such as a folder's instead of a hub id.
    trained_on, config.base_model_name_or_path = config.base_model_name_or_path, None
    if config.bias != "none" or config.modules_to_save:
        encoder.hold_master_weights()
    try:
        adapted = get_peft_model(encoder.backbone, config)
        assert isinstance(adapted, PeftModel)
        loaded: Any = set_peft_model_state_dict(adapted, weights)
    except (ValueError, RuntimeError, KeyError) as error:
        raise ConfigError(
            f"--start-adapter {folder}: not an adapter for {type(encoder.backbone).__name__} of this size: "
            f"{_reason(error)}\nIt was trained on {trained_on}."
        ) from error
    missing = [key for key in loaded.missing_keys if "lora_" in key]
    # With all biases trained PEFT writes those of the modules to save twice.
    unexpected = [key for key in loaded.unexpected_keys if not key.endswith(".modules_to_save.bias")]
    if odd := [*unexpected, *missing]:
        raise ConfigError(
            f"--start-adapter {folder}: not an adapter for {type(encoder.backbone).__name__}: it and the model "
            f"don't share {odd[0]} (and {len(odd) - 1} more).\nIt was trained on {trained_on}."
        )
    return adapted


def read_adapter(folder: str) -> tuple[LoraConfig, dict[str, Tensor]]:
    """Settings and weights of a LoRA adapter in PEFT's format.

    Raises:
        ConfigError: there is none, or it does not fit the base's published weights.
    """
    path = expanded(folder)
    for name in ("adapter_config.json", "adapter_model.safetensors"):
        if not (path / name).is_file():
            pickled = (path / "adapter_model.bin").is_file()
            refused = "; adapter_model.bin is a pickle and never read here, as it could run code" if pickled else ""
            raise ConfigError(
                f"--start-adapter {folder}: it holds no {name}{refused}.\n"
                "Expected a folder as PEFT's save_pretrained writes it, such as run/adapter."
                + (_how_to_convert(path) if pickled else "")
            )
    try:
        config = PeftConfig.from_pretrained(str(path))
        weights: dict[str, Tensor] = load_peft_weights(str(path), device="cpu")
    except (OSError, ValueError, KeyError, TypeError, SafetensorError) as error:
        raise ConfigError(f"--start-adapter {folder} can't be read: {_reason(error)}") from error
    if not isinstance(config, LoraConfig):
        kind = getattr(config.peft_type, "value", config.peft_type)
        raise ConfigError(f"--start-adapter {folder}: it is an adapter of type {kind}; expected LORA.")
    if str(config.init_lora_weights).startswith(_CHANGE_THE_BASE):
        raise ConfigError(
            f"--start-adapter {folder}: its start, {config.init_lora_weights}, changed the base's weights, so it does "
            "not fit the published ones.\nExpected an adapter that was converted to plain LoRA when it was saved."
        )
    return config, weights


def _how_to_convert(path: Path) -> str:
    old, new = str(path / "adapter_model.bin"), str(path / "adapter_model.safetensors")
    code = f"import torch, safetensors.torch as s; s.save_file(torch.load({old!r}, weights_only=True), {new!r})"
    return f'\nIf you trust where it comes from, convert it once:\n  python -c "{code}"'


def _reason(error: Exception) -> str:
    """The first line that says something: torch begins with "Error(s) in loading state_dict for ...:"."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return next((line for line in lines if not line.startswith("Error(s) in")), type(error).__name__)
