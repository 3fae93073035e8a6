"""The texts of a contrastive batch through the encoder in micro-batches, with the gradients of one pass.

Gradient caching (Gao et al. 2021): the embeddings of all texts are made first, and no activation is kept. The loss is
over all of them; its gradient for a micro-batch's embeddings is what that micro-batch, embedded once more, is
differentiated with. Memory grows with the micro-batch, negatives with the batch, and a step takes one more forward.

Shapes: `B` texts of a batch, `E` embedding size.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.autograd import Function
from torch.autograd.function import once_differentiable

from embedtune.errors import RunError
from embedtune.models.encoder import Encoder
from embedtune.models.packing import Places, TokenIds, cut, to_device
from embedtune.training.random_state import random_state, random_state_kept

MIN_TOKENS = 256
"""No micro-batch is made smaller than that: what memory is short of then are not the activations."""

Embed = Callable[[Sequence[TokenIds]], Tensor]


@dataclass
class MicroBatch:
    """How much goes through the encoder at a time in training; it gets smaller where memory runs out."""

    tokens: int | None = None
    """At the most; None for whole batches."""
    largest: int = 0
    """Tokens of the largest one of the last batch."""
    longest: int = 0
    """Tokens of the longest text of the last batch."""

    def shrink(self) -> str:
        """Halve it, because the last batch took too much memory; returns what was done, a sentence.

        Raises:
            RunError: it is as small as it gets.
        """
        smaller = max(self.largest // 2, self.longest, MIN_TOKENS)
        if smaller >= self.largest:
            raise RunError(
                f"memory ran out in a training step with only {self.largest:,} tokens at a time.\n"
                "Type one or more of:  --gradient-checkpointing, a smaller --max-length, --batch-size or --rank, "
                "--method qlora --memory low."
            )
        self.tokens = smaller
        return f"memory ran out with {self.largest:,} tokens at a time; the step is repeated with {smaller:,}"


def embed_batch(encoder: Encoder, texts: Sequence[TokenIds], size: MicroBatch, embed: Embed | None = None) -> Tensor:
    """The embeddings of one batch, shape (B, E), as `Encoder.embed` gives them.

    What fits one micro-batch goes through the encoder as it is. Otherwise the backward pass adds the gradients of the
    encoder's parameters to their `grad`, and `torch.autograd.grad` does not see them.

    Args:
        encoder: what embeds.
        texts: token ids of B texts, none empty.
        size: of a micro-batch; it is told how large they became.
        embed: does what `Encoder.embed` does in another way.
    """
    embed = embed or encoder.embed
    lengths_B = np.fromiter((len(ids) for ids in texts), dtype=np.int64, count=len(texts))
    batches = [np.arange(len(texts))]
    if size.tokens is not None:
        batches = _even_batches(lengths_B, size.tokens, padded=not encoder.packed)
    size.longest = int(lengths_B.max())
    size.largest = max(_tokens(lengths_B[places], padded=not encoder.packed) for places in batches)
    if len(batches) == 1:
        return embed(texts)
    micro_batches = [[texts[int(place)] for place in places] for places in batches]
    embeddings_BE: Tensor = _Cached.apply(  # type: ignore[no-untyped-call]
        torch.zeros((), requires_grad=True), embed, micro_batches
    )
    order_B = np.argsort(np.concatenate(batches))
    return embeddings_BE.index_select(0, to_device(order_B, embeddings_BE.device))


class _Cached(Function):
    """Embeds micro-batches without keeping anything, and each of them again in the backward pass.

    torch's checkpointing keeps the graph of each micro-batch with what operations hold beside their saved tensors, and
    brings back the GPU's random state only for functions of tensors.
    """

    @staticmethod
    def forward(ctx: Any, differentiable: Tensor, embed: Embed, micro_batches: list[list[TokenIds]]) -> Tensor:
        """The embeddings, shape (B, E). That `differentiable` wants a gradient is what makes autograd come back."""
        ctx.embed, ctx.micro_batches, ctx.random_states = embed, micro_batches, []
        parts = []
        for texts in micro_batches:
            ctx.random_states.append(random_state())
            parts.append(embed(texts))
        return torch.cat(parts)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[None, ...]:
        grads = torch.split(grad_outputs[0], [len(texts) for texts in ctx.micro_batches])
        for texts, state, grad_BE in zip(ctx.micro_batches, ctx.random_states, grads, strict=True):
            with random_state_kept(state), torch.enable_grad():
                embeddings_BE = ctx.embed(texts)
            torch.autograd.backward(embeddings_BE, grad_BE)
            del embeddings_BE  # and its graph with it, before the next one is made
        return None, None, None


def _even_batches(lengths_B: Places, tokens: int, *, padded: bool) -> list[Places]:
    """Batches of at most so many tokens; as few as that takes, and none of them much smaller than the others."""
    batches = cut(lengths_B, tokens, padded=padded)
    mean = math.ceil(sum(_tokens(lengths_B[places], padded=padded) for places in batches) / len(batches))
    evener = cut(lengths_B, min(tokens, mean + int(lengths_B.max())), padded=padded)
    return evener if len(evener) == len(batches) else batches


def _tokens(lengths_B: Places, *, padded: bool) -> int:
    """Tokens that a batch makes."""
    return int(lengths_B.max()) * len(lengths_B) if padded else int(lengths_B.sum())
