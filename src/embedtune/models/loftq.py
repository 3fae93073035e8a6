"""LoftQ: an adapter that starts as the best low-rank correction of the quantisation error (Li et al. 2023)."""

from __future__ import annotations

from typing import Any

import torch
from peft import PeftModel
from sentence_transformers import SentenceTransformer
from torch import nn

from embedtune.models.encoder import Encoder
from embedtune.models.plain import load_sentence_transformer
from embedtune.models.quantize import NF4Linear


@torch.no_grad()
def absorb_quantization_error(encoder: Encoder, adapted: PeftModel, adapter: str) -> None:
    """Set every adapter on an NF4 layer so that dequantised weight + update is as near to the checkpoint as it can be.

    The original weights are read from the checkpoint again. PEFT has the same on-the-fly variant, but leaves the
    scaling out, so that the correction is off by alpha / rank.
    """
    checkpoint, _ = load_sentence_transformer(encoder.source, device=torch.device("cpu"), kind=SentenceTransformer)
    original = checkpoint.transformers_model
    assert original is not None
    layer: Any
    for name, layer in adapted.get_base_model().named_modules():
        base = getattr(layer, "base_layer", None)
        if not isinstance(base, NF4Linear):
            continue
        linear = original.get_submodule(name)
        assert isinstance(linear, nn.Linear)
        error_OI = linear.weight.to(encoder.device, torch.float32) - base.frozen_weight(torch.float32)
        left_OK, values_K, right_KI = torch.linalg.svd(error_OI, full_matrices=False)
        rank = layer.r[adapter]
        root_R = (values_K[:rank] / layer.scaling[adapter]).sqrt()
        layer.lora_A[adapter].weight.copy_(root_R[:, None] * right_KI[:rank])
        layer.lora_B[adapter].weight.copy_(left_OK[:, :rank] * root_R)
