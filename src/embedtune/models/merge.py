"""A trained model as a plain Sentence Transformers model: adapter merged, weights in 4 bits written out again."""

from __future__ import annotations

from copy import deepcopy
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from peft import PeftModel
from sentence_transformers import SentenceTransformer
from torch import nn

from embedtune.config import ModelConfig
from embedtune.models.plain import load_sentence_transformer
from embedtune.models.trained import trained_tensors


def write_adapter(adapter: PeftModel, folder: Path, *, base: str) -> None:
    """Write the adapter in PEFT's format, as one that fits the published base of that name."""
    adapter.peft_config["default"].base_model_name_or_path = base
    adapter.save_pretrained(str(folder), save_embedding_layers=False)


def merge(
    model: SentenceTransformer, source: ModelConfig, adapter: PeftModel | None, *, into_original: bool
) -> SentenceTransformer:
    """A plain model on the CPU, in its checkpoint's dtype: the adapter merged in fp32 into a fresh copy of the base.

    Args:
        model: trained or not.
        source: what it was loaded from, and how.
        adapter: PEFT's view of its backbone, if it has an adapter.
        into_original: leave the copy's weights as they are, even if the adapter was trained on 4-bit ones.
    """
    merged, _ = load_sentence_transformer(source, device=torch.device("cpu"), kind=SentenceTransformer)
    backbone, trained = merged.transformers_model, model.transformers_model
    assert backbone is not None
    assert trained is not None
    dtype = backbone.dtype
    merged.float()
    if not into_original:
        _write_out_quantised(trained, backbone)
    if adapter is None:
        own = {name: tensor for name, tensor in model.state_dict().items() if name in merged.state_dict()}
        quantised = {name for name, tensor in own.items() if tensor.dtype == torch.uint8}
        merged.load_state_dict({name: tensor for name, tensor in own.items() if name not in quantised}, strict=False)
    else:
        with TemporaryDirectory() as folder:
            write_adapter(adapter, Path(folder), base=source.base)
            merged[0].model = PeftModel.from_pretrained(backbone, folder).merge_and_unload()
        # Whatever else was unfrozen, such as the embeddings.
        own = {name: tensor for name, tensor in trained_tensors(model).items() if name in merged.state_dict()}
        merged.load_state_dict(own, strict=False)
    take_over_settings(model, merged)
    merged.to(dtype)
    return merged


def take_over_settings(model: SentenceTransformer, into: SentenceTransformer) -> None:
    """What may have been changed since loading: how texts are read, and the modules behind the backbone."""
    into[0].processor = model[0].processor
    for name in ("prompts", "default_prompt_name", "similarity_fn_name", "truncate_dim"):
        setattr(into, name, getattr(model, name))
    del into[1:]
    into.extend(deepcopy(module).cpu() for module in list(model)[1:])


def _write_out_quantised(quantised: nn.Module, backbone: nn.Module) -> None:
    for name, layer in quantised.named_modules():
        if hasattr(layer, "frozen_weight"):
            linear = backbone.get_submodule(name.removesuffix(".base_layer"))
            assert isinstance(linear, nn.Linear)
            weight = layer.frozen_weight(torch.float32)
            linear.weight = nn.Parameter(weight.to("cpu", copy=True), requires_grad=False)  # merging changes it
