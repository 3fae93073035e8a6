"""How much work the timed batches are, counted from the model and the token ids.

Shapes: `B` texts of a batch.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from torch import nn
from transformers import PreTrainedModel

from benchmarks.batches import Batch
from benchmarks.records import Workload
from embedtune.data.tokens import tokenize
from embedtune.models.encoder import Encoder
from embedtune.models.families import encoder_linears

Lengths = npt.NDArray[np.int64]


def token_lengths(encoder: Encoder, texts: list[str]) -> Lengths:
    """Tokens of each text, special tokens included, no prompt before it, shape (B,)."""
    table = tokenize(
        texts,
        tokenizer=encoder.tokenizer,
        prompt="",
        max_length=encoder.max_length,
        empty_id=0,
    )
    return table.lengths_N


def count_work(encoder: Encoder, batches: list[Batch], *, rank: int) -> Workload:
    """The work in training on the batches once."""
    pairs = tokens = positions = 0
    flops = 0.0
    for batch in batches:
        for column in zip(*batch, strict=True):
            lengths_B = token_lengths(encoder, list(column))
            tokens += int(lengths_B.sum())
            positions += int(lengths_B.max()) * len(lengths_B)
            flops += training_flops(encoder.backbone, lengths_B, rank=rank)
        pairs += len(batch)
    return Workload(
        pairs=pairs,
        tokens=tokens,
        padding=1 - tokens / positions,
        flops=flops,
        feed_forward=feed_forward_shape(encoder.backbone, round(tokens / len(batches))),
    )


def training_flops(backbone: PreTrainedModel, lengths_B: Lengths, *, rank: int) -> float:
    """Floating-point operations that one LoRA training step needs for texts of these lengths.

    With `T` the tokens, `P` the frozen weights of the encoder's linear layers, `A` those of their adapters, `n` the
    layers and `d` the width of the attention heads together::

        linear     2·P·T forward + 2·P·T for the input gradient; frozen weights have no gradient of their own
        adapters   2·A·T forward + 4·A·T for the gradients of inputs and weights
        attention  n · Σ 4·d·length² forward (scores, then values) + twice that backward

    Left out: embeddings, norms, activations, softmax, pooling and the loss, which are small; and nothing is taken off
    for the lowest layer, whose input needs no gradient, or for causal and windowed attention.
    """
    linears = [module for name, module in backbone.named_modules() if name in set(encoder_linears(backbone))]
    shapes = [(m.in_features, m.out_features) for m in linears if isinstance(m, nn.Linear)]
    frozen = sum(inputs * outputs for inputs, outputs in shapes)
    adapters = rank * sum(inputs + outputs for inputs, outputs in shapes)
    tokens, squares = float(lengths_B.sum()), float((lengths_B.astype(np.float64) ** 2).sum())
    config = backbone.config
    head_size = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    widths = int(head_size * config.num_attention_heads * config.num_hidden_layers)
    attention = 12.0 * widths * squares
    return (4.0 * frozen + 6.0 * adapters) * tokens + attention


def feed_forward_shape(backbone: PreTrainedModel, rows: int) -> tuple[int, int, int]:
    """So many tokens through the model's first feed-forward layer, such as 4096 x 384 x 1536 for MiniLM."""
    hidden: int = backbone.config.hidden_size
    return rows, hidden, getattr(backbone.config, "intermediate_size", None) or 4 * hidden
