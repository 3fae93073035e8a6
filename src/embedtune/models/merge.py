"""A trained encoder as a plain Sentence Transformers model: adapter merged, weights in 4 bits written out again."""

from __future__ import annotations

from copy import deepcopy
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from peft import PeftModel
from safetensors.torch import save_file
from sentence_transformers import SentenceTransformer
from torch import Tensor, nn

from embedtune.models.encoder import TRAINED, Encoder
from embedtune.models.load import load_sentence_transformer


def write_adapter(encoder: Encoder, folder: Path) -> None:
    """Write the adapter in PEFT's format, as one that fits the published base.

    Raises:
        ValueError: the encoder has no adapter.
    """
    adapted = encoder.adapter
    if adapted is None:
        raise ValueError("this encoder has no adapter; attach_adapter makes one")
    adapted.peft_config["default"].base_model_name_or_path = encoder.source.base
    adapted.save_pretrained(str(folder), save_embedding_layers=False)


def merged_model(encoder: Encoder, *, into_original: bool = False) -> SentenceTransformer:
    """A plain model on the CPU that embeds as the encoder does, in the dtype of its checkpoint.

    The adapter is merged in fp32 into a fresh copy of the base. If it was trained on 4-bit weights, the copy gets their
    dequantised values first.

    Args:
        encoder: trained or not.
        into_original: merge into the checkpoint's weights even if the adapter was trained on 4-bit ones; the result
            embeds differently.
    """
    merged, _ = load_sentence_transformer(encoder.source, device=torch.device("cpu"), kind=SentenceTransformer)
    backbone = merged.transformers_model
    assert backbone is not None
    dtype = backbone.dtype
    merged.float()
    if not into_original:
        _write_out_quantised(encoder, backbone)
    if encoder.adapter is None:
        own = {name: tensor for name, tensor in encoder.state_dict().items() if name in merged.state_dict()}
        quantised = {name for name, tensor in own.items() if tensor.dtype == torch.uint8}
        merged.load_state_dict({name: tensor for name, tensor in own.items() if name not in quantised}, strict=False)
    else:
        with TemporaryDirectory() as folder:
            write_adapter(encoder, Path(folder))
            merged[0].model = PeftModel.from_pretrained(backbone, folder).merge_and_unload()
        # Whatever else was unfrozen, such as the embeddings.
        own = {name: tensor for name, tensor in trained_tensors(encoder).items() if name in merged.state_dict()}
        merged.load_state_dict(own, strict=False)
    take_over_settings(encoder, merged)
    merged.to(dtype)
    return merged


def write_trained(encoder: Encoder, folder: Path) -> None:
    """Write the trained tensors of an encoder with an adapter; see `Encoder.save`."""
    (folder / TRAINED).unlink(missing_ok=True)
    if encoder.adapter is not None:
        save_file({name: tensor.contiguous() for name, tensor in trained_tensors(encoder).items()}, folder / TRAINED)


def trained_tensors(encoder: Encoder) -> dict[str, Tensor]:
    """The trainable parameters by name, detached."""
    return {name: parameter.detach() for name, parameter in encoder.named_parameters() if parameter.requires_grad}


def take_over_settings(encoder: Encoder, model: SentenceTransformer) -> None:
    """What may have been changed since loading: how texts are read, and the modules behind the backbone."""
    model[0].processor = encoder[0].processor
    for name in ("prompts", "default_prompt_name", "similarity_fn_name", "truncate_dim"):
        setattr(model, name, getattr(encoder, name))
    del model[1:]
    model.extend(deepcopy(module).cpu() for module in list(encoder)[1:])


def _write_out_quantised(encoder: Encoder, backbone: nn.Module) -> None:
    for name, layer in encoder.backbone.named_modules():
        if hasattr(layer, "frozen_weight"):
            linear = backbone.get_submodule(name.removesuffix(".base_layer"))
            assert isinstance(linear, nn.Linear)
            weight = layer.frozen_weight(torch.float32)
            linear.weight = nn.Parameter(weight.to("cpu", copy=True), requires_grad=False)  # merging changes it
