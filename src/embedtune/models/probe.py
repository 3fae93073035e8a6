"""Whether a model can run packed: what its modules tell, and whether a few texts come out as they do padded."""

from __future__ import annotations

import torch
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import Pooling
from torch import Tensor
from transformers import PreTrainedModel

from embedtune.models.mpnet import is_mpnet

PROBE = ("a packed model", "must embed each text as if it stood alone", "word " * 200)
TOLERANCE = 1e-3


def forbids_packing(model: SentenceTransformer) -> str | None:
    """Why such a model can't run packed, as far as its modules tell; None if they allow it."""
    backbone = model.transformers_model
    assert backbone is not None
    if not isinstance(model[1], Pooling):
        return f"it has {type(model[1]).__name__} between the backbone and pooling"
    if not is_mpnet(backbone) and not type(backbone)._supports_attention_backend:
        return f"{type(backbone).__name__} does not use transformers' attention interface"
    return None


def how_they_differ(padded_BE: Tensor, packed_BE: Tensor, backbone: PreTrainedModel) -> str | None:
    """Why packed execution is not trusted; None if the embeddings of the probe agree."""
    worst = (1 - torch.cosine_similarity(padded_BE, packed_BE)).max().item()
    if worst <= TOLERANCE:
        return None
    return f"packed and padded embeddings of {type(backbone).__name__} differ by cosine {worst:.2g}"
