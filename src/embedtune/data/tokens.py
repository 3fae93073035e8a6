"""Texts as token ids, tokenised once and kept flat in memory.

Shapes: `N` texts, `T` tokens in all of them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

TOKENIZE_CHUNK = 4096
"""Texts handed to the tokenizer at a time, so that its Python lists stay small."""


@dataclass(frozen=True)
class TokenTable:
    """Token ids of `N` texts, one after another; `table[n]` are those of text `n`."""

    flat_T: npt.NDArray[np.int32]
    offsets_N1: npt.NDArray[np.int64]
    truncated: int
    """How many texts were longer than the maximum length, or 0 if the tokenizer does not tell."""

    def __len__(self) -> int:
        return len(self.offsets_N1) - 1

    def __getitem__(self, index: int) -> npt.NDArray[np.int32]:
        return self.flat_T[self.offsets_N1[index] : self.offsets_N1[index + 1]]

    @property
    def lengths_N(self) -> npt.NDArray[np.int64]:
        return np.diff(self.offsets_N1)


@dataclass(frozen=True)
class Texts:
    """Every text of a collection as token ids."""

    queries: TokenTable
    passages: TokenTable


def length_statistics(table: TokenTable) -> dict[str, float]:
    """The median, the 95th percentile and the maximum of the texts' tokens; what was cut off is not counted.

    Args:
        table: the tokens of one text or more.
    """
    median, p95 = np.percentile(table.lengths_N, (50, 95))
    return {"median": float(median), "p95": float(p95), "max": int(table.lengths_N.max())}


def tokenize(
    texts: Sequence[str], *, tokenizer: Callable[..., Any], prompt: str, max_length: int, empty_id: int
) -> TokenTable:
    """Tokenise texts, special tokens included.

    Args:
        texts: N texts.
        tokenizer: a Hugging Face tokenizer.
        prompt: put before every text; empty for none.
        max_length: tokens to keep, special tokens counted.
        empty_id: stands in for a text that gives no token at all, as an empty string does without special tokens.
    """
    flat: list[npt.NDArray[np.int32]] = []
    lengths: list[int] = []
    truncated = 0
    for start in range(0, len(texts), TOKENIZE_CHUNK):
        chunk = [prompt + text for text in texts[start : start + TOKENIZE_CHUNK]]
        encoded = tokenizer(chunk, truncation=True, max_length=max_length, padding=False, return_attention_mask=False)
        for index, ids in enumerate(encoded["input_ids"]):
            flat.append(np.asarray(ids or [empty_id], dtype=np.int32))
            lengths.append(len(flat[-1]))
            fast = encoded.encodings[index] if encoded.encodings else None
            truncated += bool(fast is not None and fast.overflowing)
    offsets = np.zeros(len(lengths) + 1, dtype=np.int64)
    np.cumsum(lengths, out=offsets[1:])
    return TokenTable(np.concatenate(flat) if flat else np.zeros(0, dtype=np.int32), offsets, truncated)
