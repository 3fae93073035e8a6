"""What is trained: LoRA adapters, attached, named and saved by PEFT and computed by one fused function a layer; or the
encoder's own weights.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any

from peft import LoraConfig, PeftModel, TaskType, get_peft_model
from peft.tuners.lora import LoraLayer
from torch import nn
from transformers import PreTrainedModel

from embedtune.config import AdapterConfig
from embedtune.errors import ConfigError
from embedtune.models.encoder import Encoder
from embedtune.models.linears import ADAPTER, fuse_lora
from embedtune.models.pissa import save_as_plain_lora
from embedtune.models.start import load_adapter, read_adapter
from embedtune.models.targets import adapter_targets, four_bit_layers, may_be_trained, saved_modules, trained_layers

_PEFT_INITS: dict[str, Any] = {"default": True, "loftq": True}
"""PEFT's names of the ways to start an adapter, where they differ; LoftQ's is computed here, on the NF4 weights."""
_DORA_BLOCK = 64
"""On the CPU bitsandbytes (0.50) misreads weights whose rows are no whole number of blocks, and PEFT's DoRA asks it."""


def make_trainable(encoder: Encoder, config: AdapterConfig) -> None:
    """Attach an adapter to the encoder, or free its own weights, as the method says; in place.

    Args:
        encoder: its parameters must be frozen; with NF4 weights already for `qlora`.
        config: what is trained.

    Raises:
        ConfigError: an option names what the model does not have, or does not fit the others.
    """
    if config.method == "full":
        unfreeze(encoder, config)
    else:
        attach_adapter(encoder, config)


def check_trainable(encoder: Encoder, config: AdapterConfig) -> None:
    """Find what `make_trainable` would refuse, as far as that can be found without changing the encoder.

    Raises:
        ConfigError: an option names what the model does not have, or does not fit the others.
        ModelError: the method needs a package that is not installed.
    """
    if config.method == "qlora":
        import embedtune.models.quantize  # noqa: F401  # says what to install
    if config.method == "full":
        trained_layers(encoder.backbone, config)
    elif config.start_adapter is None:
        _lora_config(encoder, config)
    else:
        read_adapter(config.start_adapter)


def attach_adapter(encoder: Encoder, config: AdapterConfig) -> PeftModel:
    """Attach a new LoRA adapter, or one from a folder to go on with, in place.

    Returns:
        PEFT's view of the backbone, which saves the adapter; also kept as `encoder.adapter`.

    Raises:
        ConfigError: an option names what the model does not have, or the adapter is not one for this model.
        ValueError: qlora, but the encoder's weights are not in 4 bits.
    """
    if config.method == "qlora" and not any(hasattr(module, "frozen_weight") for module in encoder.modules()):
        raise ValueError("this encoder's weights are not in 4 bits, as qlora wants them; load it with four_bit=True")
    layers = trained_layers(encoder.backbone, config)
    if config.trains_weights:
        encoder.hold_master_weights()
    if config.start_adapter is not None:
        adapted = load_adapter(encoder, config.start_adapter)
        _refuse_dora_on_ragged_rows(encoder, _dora_on_four_bit(adapted))
    else:
        adapted = get_peft_model(encoder.backbone, _lora_config(encoder, config))
    if config.init == "loftq":
        from embedtune.models.loftq import absorb_quantization_error

        absorb_quantization_error(encoder, adapted, ADAPTER)
    if config.init == "pissa":
        save_as_plain_lora(adapted, ADAPTER)
    for name, parameter in encoder.backbone.named_parameters():
        if not may_be_trained(name, layers):  # such as biases, which PEFT frees in all layers
            parameter.requires_grad_(False)
    fuse_lora(adapted)
    encoder.keep_adapter(adapted)
    encoder.train(encoder.training)  # new modules are in training mode: dropout would be on
    return adapted


def unfreeze(encoder: Encoder, config: AdapterConfig) -> None:
    """Train the weights of the encoder itself, or of its last layers, and of the modules behind its pooling; in place.

    The weights are held in fp32, as a step is smaller than what bf16 can add to a weight; they compute in the
    precision that was asked for.
    """
    encoder.hold_master_weights()
    layers = trained_layers(encoder.backbone, config)
    for name, parameter in encoder.backbone.named_parameters():
        parameter.requires_grad_(may_be_trained(name, layers))
    for module in list(encoder)[1:]:
        module.requires_grad_(True)


def trainable_parameters(model: nn.Module) -> tuple[int, int]:
    """(trainable, total) number of parameters; a weight in 4 bits counts as what it stands for."""
    trainable = sum(p.numel() for p in model.parameters() if p.requires_grad)
    return trainable, sum(_values(p) for p in model.parameters())


def _lora_config(encoder: Encoder, config: AdapterConfig) -> LoraConfig:
    backbone = encoder.backbone
    targets = adapter_targets(backbone, config)
    saved = saved_modules(backbone, config, targets)
    modules: dict[str, Any] = {name: backbone.get_submodule(name) for name in targets}
    quantised = four_bit_layers(backbone, config)
    four_bit = {name: module for name, module in modules.items() if name in quantised}
    _check_start(config, modules, four_bit)
    _require_effect(backbone, config, modules)
    if config.dora:
        _refuse_dora_on_ragged_rows(encoder, four_bit.items())
    return LoraConfig(
        r=config.rank,
        lora_alpha=config.alpha,  # type: ignore[arg-type]  # PEFT divides it: any number will do
        lora_dropout=config.dropout,
        use_rslora=config.rslora,
        use_dora=config.dora,
        init_lora_weights=_PEFT_INITS.get(config.init, config.init),
        target_modules=targets,
        bias=config.bias,
        modules_to_save=saved or None,
        task_type=TaskType.FEATURE_EXTRACTION,
    )


def _check_start(config: AdapterConfig, targets: Mapping[str, Any], four_bit: Mapping[str, Any]) -> None:
    """Refuse a way to start the adapter that these modules don't have.

    Args:
        config: the adapter's settings.
        targets: the modules that get the adapter, by name.
        four_bit: those of them that are in 4 bits, or will be.
    """
    embeddings = [name for name, module in targets.items() if isinstance(module, nn.Embedding)]
    if config.init == "pissa" and embeddings:
        raise ConfigError(
            f"--init pissa is for linear layers, and --target-modules names the embedding '{embeddings[0]}'.\n"
            f"Type:  --exclude-modules {embeddings[0].rpartition('.')[2]}, or another --init."
        )
    if config.init == "loftq" and not four_bit:
        raise ConfigError(
            "--init loftq corrects the error of 4-bit weights, and no module with an adapter has them.\n"
            "Type:  --target-modules all-linear, or another --init."
        )
    started = {"pissa": targets, "loftq": four_bit}.get(config.init, {})
    for name, layer in started.items():
        limit = min(layer.in_features, layer.out_features)
        if config.rank > limit:
            raise ConfigError(
                f"--rank is {config.rank}, but the weights of '{name}' have {limit} directions to start from.\n"
                f"Type:  --init {config.init} --rank {limit} or less, or another --init."
            )


def _require_effect(backbone: PreTrainedModel, config: AdapterConfig, targets: Mapping[str, Any]) -> None:
    """Refuse options that these modules would ignore."""
    if config.dropout > 0 and all(isinstance(module, nn.Embedding) for module in targets.values()):
        raise ConfigError(
            f"--dropout is {config.dropout:g}: it drops input features of linear layers, and the adapter is on "
            f"embeddings only, such as '{next(iter(targets))}'.\nLeave it out."
        )
    layers = trained_layers(backbone, config)
    names = [name for name, _ in backbone.named_parameters() if may_be_trained(name, layers)]
    if config.bias == "all" and not any(name.endswith(".bias") for name in names):
        raise ConfigError("--bias all would train nothing: what is trained has no biases.\nLeave it out.")
    if config.bias == "lora_only" and not any(f"{target}.bias" in names for target in targets):
        raise ConfigError("--bias lora_only would train nothing: no module with an adapter has a bias.\nLeave it out.")


def _dora_on_four_bit(adapted: PeftModel) -> list[tuple[str, Any]]:
    """Layers with DoRA on 4-bit weights, by name."""
    return [
        (name, module)
        for name, module in adapted.get_base_model().named_modules()
        if isinstance(module, LoraLayer)
        and module.use_dora.get(ADAPTER)
        and hasattr(module.get_base_layer(), "frozen_weight")
    ]


def _refuse_dora_on_ragged_rows(encoder: Encoder, four_bit: Iterable[tuple[str, Any]]) -> None:
    for name, layer in four_bit:
        if encoder.device.type == "cpu" and layer.in_features % _DORA_BLOCK:
            raise ConfigError(
                f"DoRA on 4-bit weights needs layers whose inputs are a multiple of {_DORA_BLOCK} on the CPU, where "
                f"bitsandbytes misreads others; '{name}' has {layer.in_features}.\n"
                "Type:  --method lora, or use an adapter without --dora."
            )


def _values(parameter: nn.Parameter) -> int:
    state = getattr(parameter, "quant_state", None)
    return parameter.numel() if state is None else math.prod(state.shape)
