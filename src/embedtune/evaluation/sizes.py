"""What shorter and coarser vectors would cost: the same test with embeddings cut off and rounded.

Shapes: `Q` queries, `D` passages, `E` embedding size, `S` numbers kept of an embedding, `C` passages of one chunk.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from sentence_transformers.util.quantization import quantize_embeddings
from torch import Tensor
from torch.nn import functional

from embedtune.evaluation.run import RetrievalTask, evaluate_embeddings

Precision = Literal["float32", "int8", "binary"]

SMALLEST = 32
"""Numbers of the shortest vectors that are tried."""
METRICS = ("ndcg@10", "recall@100")
_CHUNK = 16_384
_BITS: dict[Precision, int] = {"float32": 32, "int8": 8, "binary": 1}


class Stored(NamedTuple):
    """What is searched: its dot products rank as the vectors of that size and precision do."""

    queries_QS: Tensor
    corpus_DS: Tensor


def quality_by_size(
    task: RetrievalTask, queries_QE: Tensor, corpus_DE: Tensor, *, on_done: Callable[[int], None] | None = None
) -> list[dict[str, Any]]:
    """For the results: bytes a vector, NDCG@10 and recall@100 of every size and precision.

    Cut off means the first numbers of an embedding, normalised again; halves, as long as they are whole and not below
    `SMALLEST`. int8 and binary are those of Sentence Transformers' `quantize_embeddings`: 256 steps between the lowest
    and the highest value that the dimension has in the corpus, and signs. Search is exact in all of them. Queries stay
    float32 beside int8 passages, as in a vector index with scalar quantisation (Faiss's SQ8); of binary ones both are,
    and the Hamming distance ranks. Of equal distances, which are many, the lower passage id comes first.

    At most one more copy of the corpus is made at a time, half as large or a quarter of it.

    Args:
        task: What to find.
        queries_QE: Normalised embeddings of `task.query_ids`, in that order.
        corpus_DE: Normalised embeddings of `task.passage_ids`, in that order.
        on_done: Called with 1 after each of the `variants`.

    Raises:
        ValueError: The shapes don't fit the task or each other, or an embedding is NaN or infinite.
    """
    facts = []
    for dimensions, precision in variants(queries_QE.shape[1]):
        means = evaluate_embeddings(task, *stored(queries_QE, corpus_DE, dimensions, precision)).means
        size = -(-dimensions * _BITS[precision] // 8)
        scores = {metric: means[metric] for metric in METRICS}
        facts.append({"dimensions": dimensions, "precision": precision, "bytes": size, **scores})
        if on_done is not None:
            on_done(1)
    return facts


def variants(size: int) -> list[tuple[int, Precision]]:
    """(numbers, precision) that are tried for embeddings of that size: float32 at each, the others where it pays."""
    halves = [size]
    while halves[-1] % 2 == 0 and halves[-1] // 2 >= SMALLEST:
        halves.append(halves[-1] // 2)
    return [*((half, "float32") for half in halves), *((half, "int8") for half in halves[:2]), (size, "binary")]


def stored(queries_QE: Tensor, corpus_DE: Tensor, dimensions: int, precision: Precision) -> Stored:
    """Queries and corpus as they are in vectors of that size and precision."""
    queries_QS = _cut_off(queries_QE, dimensions)
    if precision == "float32":
        return Stored(queries_QS, _cut_off(corpus_DE, dimensions))
    if precision == "binary":
        # The dot product of signs is the number of numbers less twice the Hamming distance.
        signs_DS = torch.cat([_signs(chunk_CS) for chunk_CS in _chunks(corpus_DE, dimensions)])
        return Stored(_signs(queries_QS), signs_DS)
    ranges = _ranges(corpus_DE, dimensions)
    codes = [quantize_embeddings(chunk_CS, "int8", ranges=ranges) for chunk_CS in _chunks(corpus_DE, dimensions)]
    # A passage is lowest value + step * (code + 128): all but step * code is the same for every passage of a query.
    steps_S = torch.from_numpy(ranges[1] - ranges[0]) / 255
    return Stored(queries_QS * steps_S.to(queries_QS), torch.from_numpy(np.concatenate(codes)).to(corpus_DE.device))


def _chunks(corpus_DE: Tensor, dimensions: int) -> Iterator[Tensor]:
    for start in range(0, len(corpus_DE), _CHUNK):
        yield _cut_off(corpus_DE[start : start + _CHUNK], dimensions)


def _cut_off(embeddings: Tensor, dimensions: int) -> Tensor:
    if dimensions == embeddings.shape[1]:
        return embeddings
    return functional.normalize(embeddings[:, :dimensions], dim=-1)


def _ranges(corpus_DE: Tensor, dimensions: int) -> np.ndarray[Any, np.dtype[np.float32]]:
    """Lowest and highest value of each dimension in the corpus, shape (2, S)."""
    ends = [torch.stack([chunk_CS.amin(dim=0), chunk_CS.amax(dim=0)]) for chunk_CS in _chunks(corpus_DE, dimensions)]
    lowest_S, highest_S = torch.stack(ends).unbind(dim=1)
    ranges: np.ndarray[Any, np.dtype[np.float32]] = (
        torch.stack([lowest_S.amin(dim=0), highest_S.amax(dim=0)]).float().cpu().numpy()
    )
    return ranges


def _signs(embeddings: Tensor) -> Tensor:
    return (embeddings > 0).to(torch.int8) * 2 - 1
