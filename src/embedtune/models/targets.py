"""Which modules an adapter goes on, by names, patterns and layers; every name must be one that the model has."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable

from torch import nn
from transformers import PreTrainedModel

from embedtune.config import AdapterConfig
from embedtune.errors import ConfigError
from embedtune.models.families import encoder_linears, in_token_embeddings, layer_list

ALL_LINEAR = "all-linear"


def adapter_targets(backbone: PreTrainedModel, config: AdapterConfig) -> list[str]:
    """Full names of the modules that get an adapter, in the model's order.

    Raises:
        ConfigError: a name, pattern or layer number fits nothing, or nothing is left.
    """
    layers = trained_layers(backbone, config)
    modules = {name: module for name, module in backbone.named_modules() if may_be_trained(name, layers)}
    names = [name for name, module in modules.items() if isinstance(module, nn.Linear | nn.Embedding)]
    linears = [name for name in names if isinstance(modules[name], nn.Linear)]
    scope = "the model" if layers is None else "the layers that are trained"
    chosen: set[str] = set()
    for entry in config.target_modules:
        found = linears if entry == ALL_LINEAR else _matching(names, entry)
        _require_found(found, f"--target-modules: '{entry}' is no module of {scope}", [ALL_LINEAR, *_last_parts(names)])
        chosen.update(found)
    excluded: set[str] = set()
    for entry in config.exclude_modules:
        found = _matching(chosen, entry)
        _require_found(
            found, f"--exclude-modules: '{entry}' is none of the modules that get an adapter", _last_parts(chosen)
        )
        excluded.update(found)
    if chosen <= excluded:
        raise ConfigError(
            f"no module is left for the adapter: --exclude-modules {' '.join(config.exclude_modules)} excludes all of "
            f"--target-modules {' '.join(config.target_modules)}.\nLeave one of its names out."
        )
    return [name for name in names if name in chosen - excluded]


def saved_modules(backbone: PreTrainedModel, config: AdapterConfig, targets: Collection[str]) -> list[str]:
    """Full names of the modules trained in full beside the adapter; a module with parts stands for its parts.

    Raises:
        ConfigError: a name fits nothing, or a module that has an adapter or 4-bit weights.
    """
    layers = trained_layers(backbone, config)
    # Those without parameters, such as dropout, would be trained without effect.
    modules = {
        name: module
        for name, module in backbone.named_modules()
        if name and may_be_trained(name, layers) and next(module.parameters(), None) is not None
    }
    scope = "the model" if layers is None else "the layers that are trained"
    chosen: set[str] = set()
    for entry in config.modules_to_save:
        found = _matching(modules, entry)
        _require_found(
            found, f"--modules-to-save: '{entry}' is no module of {scope} that has weights", _last_parts(modules)
        )
        chosen.update(part for name in found for part in _parts_with_weights(name, modules[name]))
    if twice := sorted(chosen & set(targets)):
        raise ConfigError(
            f"--modules-to-save names '{twice[0]}', which gets an adapter too.\n"
            f"Type:  --exclude-modules {twice[0].rpartition('.')[2]}   to train it in full, or leave it out of one."
        )
    if four_bit := sorted(chosen & four_bit_layers(backbone, config)):
        raise ConfigError(
            f"--modules-to-save names '{four_bit[0]}', whose weights are in 4 bits and can't be trained.\n"
            "Expected modules that are not linear layers, such as norms or embeddings; or --method lora."
        )
    _refuse_other_ends(backbone, chosen)
    return [name for name in modules if name in chosen]


def four_bit_layers(backbone: PreTrainedModel, config: AdapterConfig) -> set[str]:
    """Full names of the layers whose weights are in 4 bits, or will be once the adapter is attached."""
    if config.method == "qlora":
        return set(quantisable_linears(backbone))
    return {name for name in encoder_linears(backbone) if hasattr(backbone.get_submodule(name), "frozen_weight")}


def quantisable_linears(backbone: PreTrainedModel) -> list[str]:
    """Full names of the linear layers whose weights may be in 4 bits.

    transformers keeps others in fp32, such as T5's `wo`, and casts their inputs to their weights' dtype, which must be
    one to compute in.
    """
    kept = tuple(backbone._keep_in_fp32_modules or ())
    return [name for name in encoder_linears(backbone) if not name.endswith(kept)]


def may_be_trained(name: str, layers: tuple[str, ...] | None) -> bool:
    """Whether the module or parameter of that name may be trained.

    Args:
        name: in the backbone.
        layers: prefixes of the names of the layers that are trained, from `trained_layers`.
    """
    return in_token_embeddings(name) and (layers is None or name.startswith(layers))


def trained_layers(backbone: PreTrainedModel, config: AdapterConfig) -> tuple[str, ...] | None:
    """Prefixes of the names of the layers that are trained; None if there is no restriction.

    Raises:
        ConfigError: a layer number that the model doesn't have, or a model whose layers share their weights.
    """
    if not config.layers_to_transform and config.last_layers is None:
        return None
    name, layers = layer_list(backbone)
    count = len(layers)
    if count != backbone.config.num_hidden_layers:
        raise ConfigError(
            f"{type(backbone).__name__} uses the same weights in all its layers, so single layers can't be chosen.\n"
            "Leave --layers-to-transform and --last-layers out."
        )
    if config.last_layers is not None:
        if config.last_layers > count:
            raise ConfigError(f"--last-layers is {config.last_layers}, but the model has {count} layers.")
        numbers: Iterable[int] = range(count - config.last_layers, count)
    else:
        numbers = config.layers_to_transform
        if outside := [number for number in numbers if number >= count]:
            raise ConfigError(
                f"--layers-to-transform names layer {outside[0]}, but the model's {count} layers are 0 to {count - 1}."
            )
    return tuple(f"{name}.{number}." for number in numbers)


def _matching(names: Iterable[str], entry: str) -> list[str]:
    """Names that are the entry, end with it, or fit it as a regular expression."""
    try:
        pattern = re.compile(entry)
    except re.error:
        pattern = re.compile(re.escape(entry))
    return [name for name in names if name == entry or name.endswith(f".{entry}") or pattern.fullmatch(name)]


def _require_found(found: Collection[str], otherwise: str, valid: Iterable[str]) -> None:
    if not found:
        raise ConfigError(
            f"{otherwise}.\n"
            f"Expected {', '.join(sorted(set(valid)))}; a longer end of a name, such as 0.attention.self.query; or a "
            "regular expression for whole names."
        )


def _refuse_other_ends(backbone: nn.Module, chosen: Collection[str]) -> None:
    """PEFT takes a module to save for every one whose name ends as its own does, even within a word."""
    for name, _ in backbone.named_modules():
        if name not in chosen and (ends := [end for end in sorted(chosen) if name.endswith(end)]):
            raise ConfigError(
                f"--modules-to-save names '{ends[0]}', and PEFT, which keeps it, would take '{name}' too, as its name "
                f"ends so.\nType:  --modules-to-save '.*{ends[0]}'   to train all of them, or leave it out."
            )


def _last_parts(names: Iterable[str]) -> list[str]:
    return [last for name in names if not (last := name.rpartition(".")[2]).isdigit()]


def _parts_with_weights(name: str, module: nn.Module) -> list[str]:
    """Names of the outermost modules in it, itself perhaps, that have parameters of their own."""
    if next(module.parameters(recurse=False), None) is not None:
        return [name]
    return [part for child, inner in module.named_children() for part in _parts_with_weights(f"{name}.{child}", inner)]
