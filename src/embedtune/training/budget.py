"""How many tokens a training step takes at a time: the memory that is free by the memory that a token takes.

Shapes: `N` texts.
"""

from __future__ import annotations

import gc
import logging
import math
from collections.abc import Sequence

import numpy as np

from embedtune.data.collection import Pairs
from embedtune.data.tokens import TokenTable
from embedtune.models.encoder import Encoder
from embedtune.models.memory import free_bytes, out_of_memory, peak_bytes
from embedtune.models.packing import Places, TokenIds
from embedtune.training.microbatch import MIN_TOKENS
from embedtune.training.random_state import random_state_kept

logger = logging.getLogger(__name__)

SHARE_OF_MEMORY = {"cpu": 0.6, "cuda": 0.8}
"""Share of the free memory that a micro-batch may take. On a CPU others take from it too, and a process that takes too
much is killed; on a GPU its step is repeated with less."""
ENOUGH_TOKENS = {"cpu": 4_096, "cuda": 131_072}
"""Tokens of a micro-batch where one is needed; more does not run faster, and takes memory from others."""
SAMPLE_TOKENS = 512
"""A sample of about so many tokens is measured, and one of twice as many."""
MEASURED_LENGTH = 1024
"""Longest text that is measured; what longer ones take is inferred."""
LONG_QUANTILE = 0.95
"""Texts are measured at the length that this share of all tokens stays within: attention takes more, the longer a text
is, and micro-batches are made of texts of similar length. The few that are longer still have to share one with others.
"""


def choose_micro_batch(
    encoder: Encoder, pairs: Pairs, query_tokens: TokenTable, passage_tokens: TokenTable, *, largest: int
) -> int:
    """Tokens that go through the encoder at a time: all that fit the memory, or as many as are worth while.

    Args:
        encoder: made trainable; forward and backward are run on a small sample, and leave no trace.
        pairs: rows to train on.
        query_tokens: token ids of the queries.
        passage_tokens: token ids of the passages.
        largest: tokens of the largest batch.
    """
    lengths_N = np.concatenate(
        [
            query_tokens.lengths_N[pairs.query_ids],
            passage_tokens.lengths_N[pairs.passage_ids],
            *(passage_tokens.lengths_N[list(negatives)] for negatives in pairs.negative_ids if negatives),
        ]
    )
    longest = max(pairs.passage_ids, key=lambda passage: passage_tokens.lengths_N[passage])
    fitting = _fitting_tokens(encoder, passage_tokens[int(longest)], _long_length(lengths_N))
    return fitting if largest <= fitting else min(fitting, ENOUGH_TOKENS[encoder.device.type])


def _fitting_tokens(encoder: Encoder, text: TokenIds, length: int) -> int:
    """Tokens of texts of that length that fit the memory, with their activations, while training goes through them."""
    trainable = sum(p.numel() * p.element_size() for p in encoder.parameters() if p.requires_grad)
    still_to_come = 4 * trainable  # gradients, the optimiser's two moments, and the mean of the weights
    budget = SHARE_OF_MEMORY[encoder.device.type] * (free_bytes(encoder.device) - still_to_come)
    try:
        a_token = _bytes_per_token(encoder, text, length)
    except (RuntimeError, MemoryError) as error:
        if not out_of_memory(error):
            raise
        return MIN_TOKENS
    tokens = max(MIN_TOKENS, math.floor(budget / a_token))
    logger.info("%.0f bytes a token, %.1f GiB for them: %d tokens fit", a_token, budget / 2**30, tokens)
    return tokens


def _long_length(lengths_N: Places) -> int:
    """The length that `LONG_QUANTILE` of all tokens stay within."""
    ascending_N = np.sort(lengths_N)
    tokens_N = np.cumsum(ascending_N)
    return int(ascending_N[np.searchsorted(tokens_N, LONG_QUANTILE * tokens_N[-1])])


def _bytes_per_token(encoder: Encoder, text: TokenIds, length: int) -> float:
    """Bytes that a token takes in texts of that length, some of which are measured with the beginning of `text`."""
    if length <= MEASURED_LENGTH:
        return _measure(encoder, np.resize(text, length))
    # Attention's share grows with the length, and all the rest does not.
    half, whole = (_measure(encoder, np.resize(text, size)) for size in (MEASURED_LENGTH // 2, MEASURED_LENGTH))
    return whole + max(0.0, whole - half) * (length - MEASURED_LENGTH) / (MEASURED_LENGTH / 2)


def _measure(encoder: Encoder, text: TokenIds) -> float:
    """Bytes that a token more takes at the peak of a forward and backward pass, in texts of that length."""
    copies = math.ceil(SAMPLE_TOKENS / len(text))
    gc.collect()  # or what is freed meanwhile is taken for what the model takes less
    was_training = encoder.training
    encoder.train()
    with random_state_kept():
        # Twice as many first: what is made at the first pass and kept would otherwise be missing from the difference.
        double = peak_bytes(lambda: _forward_backward(encoder, [text] * 2 * copies), encoder.device)
        single = peak_bytes(lambda: _forward_backward(encoder, [text] * copies), encoder.device)
    encoder.train(was_training)
    return max(4.0 * encoder.width, (double - single) / (copies * len(text)))  # one fp32 row of a token at the least


def _forward_backward(encoder: Encoder, texts: Sequence[TokenIds]) -> None:
    encoder.embed(texts).sum().backward()  # type: ignore[no-untyped-call]
    encoder.zero_grad(set_to_none=True)
