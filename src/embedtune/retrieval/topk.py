"""Exact top-k search, with ties always broken towards the lower passage id.

`torch.topk` may return any of the passages that tie at the k-th place, so metrics would depend on the device
and on the chunk size. Here a score and its passage id become one 64-bit integer key; keys have the order
wanted and no two are equal, so every top-k of keys is unique.

Shapes: `Q` queries, `D` passages, `C` passages of one chunk, `K` results per query, `E` embedding size.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

_SIGN_BIT = 2**31
_KEY_SHIFT = 2**32


@dataclass(frozen=True)
class TopK:
    """The best passages of each query, best first; of equal scores the lower passage id first."""

    scores_QK: Tensor
    """fp32, on the device searched on."""
    ids_QK: Tensor
    """int64 rows of the corpus, on the device searched on."""


def search(
    queries_QE: Tensor,
    corpus_DE: Tensor,
    k: int,
    *,
    chunk_size: int = 2048,
    on_progress: Callable[[int], None] | None = None,
) -> TopK:
    """The `k` passages with the highest dot product for each query; exact, nothing is approximated.

    Scores are summed in fp64 and rounded to fp32. The order in which a matrix product sums depends on its
    shape, so in fp32 equal passages would get different scores by their place in the corpus, and chunks would
    change the ranking. It also keeps TF32 and autocast out.

    Args:
        queries_QE: Query embeddings, normalised by the caller where cosine similarity is meant.
        corpus_DE: Passage embeddings, on the same device. A passage's id is its row.
        k: Passages wanted per query; `K` is the smaller of `k` and `D`.
        chunk_size: Queries and passages per block. Bounds the working memory, some 40 bytes times
            its square, and does not change the result.
        on_progress: Called with the number of queries done after each block of them.

    Raises:
        ValueError: Shapes or devices don't fit, there are no passages, `k` or `chunk_size` is below 1, or an
            embedding is NaN or infinite.
    """
    _check(queries_QE, corpus_DE, k, chunk_size)
    k = min(k, len(corpus_DE))
    keys = []
    with torch.no_grad():
        for part_QE in _parts(queries_QE, chunk_size):
            keys.append(_search_keys(part_QE, corpus_DE, k, chunk_size))
            if on_progress is not None:
                on_progress(len(part_QE))
        return _from_keys(torch.cat(keys))


def top_k(scores_QD: Tensor, k: int) -> TopK:
    """The `k` best passages of a matrix of fp32 scores, for scores that are not dot products of embeddings.

    Raises:
        ValueError: `k` is below 1, or the scores are not a matrix of fp32 numbers with at least one column.
    """
    if scores_QD.ndim != 2 or scores_QD.dtype != torch.float32:
        raise ValueError(f"scores: got {_describe(scores_QD)}, expected (queries, passages) of torch.float32")
    _check_positive("passages", scores_QD.shape[1])
    _check_positive("k", k)
    return _from_keys(_best_keys(scores_QD, 0, k).sort(dim=1, descending=True).values)


def _search_keys(queries_QE: Tensor, corpus_DE: Tensor, k: int, chunk_size: int) -> Tensor:
    """Keys of the best `k` passages of one block of queries, merged over the blocks of the corpus."""
    queries_QE = queries_QE.double()
    best_QK = torch.empty(len(queries_QE), 0, dtype=torch.int64, device=queries_QE.device)
    first_id = 0
    for corpus_CE in _parts(corpus_DE, chunk_size):
        scores_QC = (queries_QE @ corpus_CE.double().T).float()
        candidates_QC = torch.cat([best_QK, _best_keys(scores_QC, first_id, k)], dim=1)
        best_QK = candidates_QC.topk(min(k, candidates_QC.shape[1]), dim=1).values
        first_id += len(corpus_CE)
    return best_QK


def _parts(rows: Tensor, size: int) -> Iterator[Tensor]:
    """Consecutive blocks of rows; one empty block if there are no rows, so that results keep their shape."""
    for start in range(0, max(1, len(rows)), size):
        yield rows[start : start + size]


def _best_keys(scores_QC: Tensor, first_id: int, k: int) -> Tensor:
    """Keys of the best `k` passages of each row, unordered; `first_id` is the id of the first column."""
    k = min(k, scores_QC.shape[1])
    values_QK, columns_QK = scores_QC.topk(k, dim=1, sorted=False)
    keys_QK = _to_keys(values_QK, columns_QK + first_id)
    # Keys of whole rows cost several times the top-k of scores, so only rows that need them pay.
    tied_Q = (scores_QC >= values_QK.amin(dim=1, keepdim=True)).sum(dim=1) > k
    if bool(tied_Q.any()):
        ids_C = torch.arange(first_id, first_id + scores_QC.shape[1], device=scores_QC.device)
        keys_QK[tied_Q] = _to_keys(scores_QC[tied_Q], ids_C).topk(k, dim=1).values
    return keys_QK


def _to_keys(scores: Tensor, ids: Tensor) -> Tensor:
    """Integers that sort by score, then by descending passage id: `order(score) * 2**32 - id`.

    The bits of an fp32 number are a sign and a magnitude that grows with the number, so the signed magnitude
    sorts like the number; -0 and +0 give the same one.
    """
    bits = scores.view(torch.int32).long()
    order = torch.where(bits < 0, -(bits + _SIGN_BIT), bits)
    return order * _KEY_SHIFT - ids


def _from_keys(keys_QK: Tensor) -> TopK:
    """Undo `_to_keys`, for keys in descending order."""
    ids_QK = -keys_QK % _KEY_SHIFT
    order_QK = (keys_QK + ids_QK) // _KEY_SHIFT
    bits_QK = torch.where(order_QK < 0, -order_QK - _SIGN_BIT, order_QK)
    return TopK(scores_QK=bits_QK.int().view(torch.float32), ids_QK=ids_QK)


def _check(queries_QE: Tensor, corpus_DE: Tensor, k: int, chunk_size: int) -> None:
    if queries_QE.ndim != 2 or corpus_DE.ndim != 2 or queries_QE.shape[1] != corpus_DE.shape[1]:
        raise ValueError(
            f"queries: got {_describe(queries_QE)}, corpus: got {_describe(corpus_DE)}, "
            "expected (queries, size) and (passages, size) with the same size"
        )
    if queries_QE.device != corpus_DE.device:
        raise ValueError(f"queries: got {queries_QE.device}, corpus: got {corpus_DE.device}, expected one device")
    _check_positive("passages", len(corpus_DE))
    _check_positive("k", k)
    _check_positive("chunk_size", chunk_size)
    for name, embeddings in (("query", queries_QE), ("corpus", corpus_DE)):
        # A NaN compares with nothing, so it would silently take any place in the ranking.
        if not all(bool(chunk.isfinite().all()) for chunk in _parts(embeddings, chunk_size)):
            raise ValueError(f"the {name} embeddings have NaN or infinite values; expected finite numbers")


def _check_positive(name: str, value: int) -> None:
    if value < 1:
        raise ValueError(f"{name}: got {value}, expected at least 1")


def _describe(tensor: Tensor) -> str:
    return f"shape {tuple(tensor.shape)} of {tensor.dtype}"
