"""A base model from a hub id or a folder to an `Encoder`."""

from __future__ import annotations

from dataclasses import replace

import torch
from sentence_transformers import SentenceTransformer

from embedtune.config import ModelConfig
from embedtune.models.encoder import Encoder
from embedtune.models.hardware import choose_device, choose_precision, torch_dtype
from embedtune.models.plain import load_sentence_transformer
from embedtune.models.source import pin


def load_encoder(config: ModelConfig, *, four_bit: bool = False, master_weights: bool = False) -> Encoder:
    """Load a model for packed execution, all its parameters frozen.

    Args:
        config: which model, on which device, in which arithmetic. A Sentence Transformers model keeps its own settings;
            a bare checkpoint gets mean pooling and normalisation.
        four_bit: hold the linear layers of the backbone in NF4; needs the extra `quant`.
        master_weights: hold the backbone's weights in fp32, whatever it computes in, because they will be trained.

    Raises:
        ModelError: there is no such model, it can't be reached, it isn't a text encoder, or the device or the precision
            can't be used.
    """
    device = choose_device(config.device)
    config = pin(config)
    precision, reason = choose_precision(config.precision, device)
    # In 4 bits a model may fit a device that it does not fit otherwise.
    encoder, notes = load_sentence_transformer(config, device=torch.device("cpu") if four_bit else device, kind=Encoder)
    encoder.source = replace(config, precision=precision, max_length=encoder.max_length)
    encoder.notes, encoder.precision_reason = notes, reason
    dtype = torch_dtype(precision)
    if master_weights and dtype != torch.float32:
        encoder.autocast_dtype, dtype = dtype, torch.float32
    encoder.requires_grad_(False)
    if four_bit:
        from embedtune.models.quantize import quantize  # needs bitsandbytes

        encoder.backbone.to(dtype)  # type: ignore[arg-type]
        encoder.notes.append(quantize(encoder, device=device, low_memory=config.memory == "low"))
    encoder.to(device)
    encoder.backbone.to(dtype)  # type: ignore[arg-type]  # transformers' wrapper hides the overloads
    for module in list(encoder)[1:]:
        module.float()
    encoder.pack()
    return encoder


def check_encoder(config: ModelConfig) -> ModelConfig:
    """Whether a model can be loaded, as far as its settings, its tokenizer and the headers of its weights tell.

    Returns:
        The config with the commit of a hub model as its revision.

    Raises:
        ModelError: as `load_encoder`.
    """
    config = pin(config)
    # Code that comes with a model may compute with its weights while it is loaded.
    device = torch.device("cpu" if config.trust_remote_code else "meta")
    load_sentence_transformer(config, device=device, kind=SentenceTransformer)
    return config
