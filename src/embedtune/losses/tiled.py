"""The contrastive loss in tiles of queries, for batches whose scores would not fit the memory, or only just.

The gradients of a tile are computed at once with its loss, in the forward pass, as cut cross-entropy does (Wijmans et
al. 2024): no score is kept, and none is computed twice.

Shapes: `Q` queries, `P` passages of the batch, `E` embedding size, `A` known answers, `T` rows of a tile, `C`
candidates that a row of it ranks.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function
from torch.autograd.function import once_differentiable

from embedtune.kernels.autocast import no_autocast

TILE_SCORES = 1 << 22
"""Scores held at a time: 16 MiB in fp32, and as much again for their exponentials."""


def info_nce(
    queries_QE: Tensor,
    passages_PE: Tensor,
    positives_Q: Tensor,
    answers_2A: Tensor,
    *,
    scale: float = 20.0,
    both_directions: bool = False,
) -> Tensor:
    """Same signature and result as `infonce.info_nce`; computed in fp32 or better."""
    loss: Tensor = _TiledInfoNCE.apply(  # type: ignore[no-untyped-call]
        queries_QE, passages_PE, positives_Q, answers_2A, scale, both_directions
    )
    return loss


class _TiledInfoNCE(Function):
    @staticmethod
    def forward(
        ctx: Any,
        queries_QE: Tensor,
        passages_PE: Tensor,
        positives_Q: Tensor,
        answers_2A: Tensor,
        scale: float,
        both_directions: bool,
    ) -> Tensor:
        dtype = torch.promote_types(queries_QE.dtype, torch.float32)
        batch = _Batch(queries_QE.to(dtype), passages_PE.to(dtype), positives_Q, answers_2A, scale)
        with no_autocast(queries_QE):
            loss = batch.rank_passages()
            if both_directions:
                loss += batch.rank_queries()
        terms = len(positives_Q) * (2 if both_directions else 1)
        ctx.factor = scale / terms
        ctx.save_for_backward(batch.grad_queries_QE.to(queries_QE.dtype), batch.grad_passages_PE.to(passages_PE.dtype))
        return loss / terms

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:
        grad_queries_QE, grad_passages_PE = ctx.saved_tensors
        factor = grad_outputs[0] * ctx.factor
        return factor * grad_queries_QE, factor * grad_passages_PE, None, None, None, None


class _Batch:
    """A batch, and the gradients of its summed loss, but for the scale, as far as its tiles have been ranked."""

    def __init__(
        self, queries_QE: Tensor, passages_PE: Tensor, positives_Q: Tensor, answers_2A: Tensor, scale: float
    ) -> None:
        self.queries_QE, self.passages_PE = queries_QE, passages_PE
        self.positives_Q, self.scale = positives_Q, scale
        self.rows_A, self.columns_A = answers_2A
        self.grad_queries_QE, self.grad_passages_PE = torch.zeros_like(queries_QE), torch.zeros_like(passages_PE)

    def rank_passages(self) -> Tensor:
        """The summed loss of each query ranking the passages."""
        loss = self.queries_QE.new_zeros(())
        for first, last in self._tiles(len(self.passages_PE)):
            # Answers of other tiles' queries go to a slot behind those of this one: selecting would wait for the GPU.
            here_A = (self.rows_A >= first) & (self.rows_A < last)
            slots_A = torch.where(here_A, self.rows_A - first, last - first)
            tile_loss, grad_TE = self._rank(
                self.queries_QE[first:last],
                self.passages_PE,
                self.positives_Q[first:last],
                _marked(slots_A, self.columns_A, last - first, len(self.passages_PE))[:-1],
                self.grad_passages_PE,
            )
            loss += tile_loss
            self.grad_queries_QE[first:last] += grad_TE
        return loss

    def rank_queries(self) -> Tensor:
        """The summed loss of each row's positive ranking the queries; any other query that it answers is masked."""
        loss = self.queries_QE.new_zeros(())
        rows_Q = torch.arange(len(self.queries_QE), device=self.queries_QE.device)
        for first, last in self._tiles(len(self.queries_QE)):
            positives_T = self.positives_Q[first:last]
            slots_P = torch.full((len(self.passages_PE),), last - first, device=rows_Q.device)
            slots_P[positives_T] = rows_Q[: last - first]  # rows with the same passage come to share a slot
            marked = _marked(slots_P[self.columns_A], self.rows_A, last - first, len(self.queries_QE))
            tile_loss, grad_TE = self._rank(
                self.passages_PE[positives_T],
                self.queries_QE,
                rows_Q[first:last],
                marked[slots_P[positives_T]],
                self.grad_queries_QE,
            )
            loss += tile_loss
            self.grad_passages_PE.index_add_(0, positives_T, grad_TE)
        return loss

    def _tiles(self, candidates: int) -> Iterator[tuple[int, int]]:
        """First row of each tile and the one behind its last, so that it has `TILE_SCORES` scores at the most."""
        rows, step = len(self.queries_QE), max(1, TILE_SCORES // candidates)
        return ((first, min(first + step, rows)) for first in range(0, rows, step))

    def _rank(
        self, anchors_TE: Tensor, candidates_CE: Tensor, own_T: Tensor, masked_TC: Tensor, grad_candidates_CE: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Summed cross-entropy of the anchors' own candidates, and its gradient for the anchors; adds the other one.

        Args:
            anchors_TE: what ranks.
            candidates_CE: what is ranked.
            own_T: each anchor's own candidate, never masked.
            masked_TC: bool, candidates that are left out; written to.
            grad_candidates_CE: the gradient for the candidates is added here.
        """
        own_T1 = own_T[:, None]
        masked_TC.scatter_(1, own_T1, False)
        scores_TC = (anchors_TE * self.scale) @ candidates_CE.t()
        scores_TC.masked_fill_(masked_TC, float("-inf"))
        normaliser_T1 = scores_TC.logsumexp(1, keepdim=True)
        loss = (normaliser_T1 - scores_TC.gather(1, own_T1)).sum()
        grad_TC = scores_TC.sub_(normaliser_T1).exp_()  # the softmax, in place
        grad_TC.scatter_add_(1, own_T1, grad_TC.new_full((1, 1), -1.0).expand_as(own_T1))
        grad_candidates_CE.addmm_(grad_TC.t(), anchors_TE)
        return loss, grad_TC @ candidates_CE


def _marked(slots_A: Tensor, columns_A: Tensor, slots: int, columns: int) -> Tensor:
    """True at each answer's slot and column, bool, shape (slots + 1, columns)."""
    marked = torch.zeros(slots + 1, columns, dtype=torch.bool, device=slots_A.device)
    return marked.index_put_((slots_A, columns_A), marked.new_ones(()))
