"""The contrastive loss in tiles of queries, for batches whose scores would not fit the memory, or only just.

The gradients of a tile are computed at once with its loss, in the forward pass, as cut cross-entropy does (Wijmans et
al. 2024): no score is kept, and none is computed twice.

Shapes: `Q` queries, `P` passages of the batch, `E` embedding size, `G` the guide's, `A` known answers, `T` rows of a
tile, `C` candidates that a row of it ranks.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function
from torch.autograd.function import once_differentiable

from embedtune.kernels.autocast import no_autocast
from embedtune.losses.batch import Guide
from embedtune.losses.infonce import like_answers

TILE_SCORES = 1 << 22
"""Scores held at a time: 16 MiB in fp32, as much again for their exponentials, and for the scores of a guide."""


def info_nce(
    queries_QE: Tensor,
    passages_PE: Tensor,
    positives_Q: Tensor,
    answers_2A: Tensor,
    *,
    scale: float | Tensor = 20.0,
    both_directions: bool = False,
    guide: Guide | None = None,
) -> Tensor:
    """Same signature and result as `infonce.info_nce`; computed in fp32 or better."""
    loss: Tensor = _TiledInfoNCE.apply(  # type: ignore[no-untyped-call]
        queries_QE, passages_PE, scale, positives_Q, answers_2A, both_directions, guide
    )
    return loss


class _TiledInfoNCE(Function):
    @staticmethod
    def forward(
        ctx: Any,
        queries_QE: Tensor,
        passages_PE: Tensor,
        scale: float | Tensor,
        positives_Q: Tensor,
        answers_2A: Tensor,
        both_directions: bool,
        guide: Guide | None,
    ) -> Tensor:
        dtype = torch.promote_types(queries_QE.dtype, torch.float32)
        batch = _Batch(queries_QE.to(dtype), passages_PE.to(dtype), positives_Q, answers_2A, scale, guide)
        with no_autocast(queries_QE):
            loss = batch.rank_passages()
            if both_directions:
                loss += batch.rank_queries()
        terms = len(positives_Q) * (2 if both_directions else 1)
        ctx.factor = scale / terms
        ctx.save_for_backward(
            batch.grad_queries_QE.to(queries_QE.dtype), batch.grad_passages_PE.to(passages_PE.dtype), batch.grad_scale
        )
        ctx.terms = terms
        return loss / terms

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:
        grad_queries_QE, grad_passages_PE, grad_scale = ctx.saved_tensors
        factor = grad_outputs[0] * ctx.factor
        of_scale = grad_outputs[0] * grad_scale / ctx.terms if ctx.needs_input_grad[2] else None
        return factor * grad_queries_QE, factor * grad_passages_PE, of_scale, None, None, None, None


class _Batch:
    """A batch, and the gradients of its summed loss, but for the scale, as far as its tiles have been ranked."""

    def __init__(
        self,
        queries_QE: Tensor,
        passages_PE: Tensor,
        positives_Q: Tensor,
        answers_2A: Tensor,
        scale: float | Tensor,
        guide: Guide | None,
    ) -> None:
        self.queries_QE, self.passages_PE = queries_QE, passages_PE
        self.positives_Q, self.scale, self.guide = positives_Q, scale, guide
        self.rows_A, self.columns_A = answers_2A
        self.grad_queries_QE, self.grad_passages_PE = torch.zeros_like(queries_QE), torch.zeros_like(passages_PE)
        self.grad_scale = queries_QE.new_zeros(())

    def rank_passages(self) -> Tensor:
        """The summed loss of each query ranking the passages."""
        loss = self.queries_QE.new_zeros(())
        for first, last in self._tiles(len(self.passages_PE)):
            # Answers of other tiles' queries go to a slot behind those of this one: selecting would wait for the GPU.
            here_A = (self.rows_A >= first) & (self.rows_A < last)
            slots_A = torch.where(here_A, self.rows_A - first, last - first)
            masked_TP = _marked(slots_A, self.columns_A, last - first, len(self.passages_PE))[:-1]
            own_T1 = self.positives_Q[first:last, None]
            if self.guide is not None:
                guide_TP = self.guide.queries_QG[first:last] @ self.guide.passages_PG.t()
                masked_TP |= like_answers(guide_TP, own_T1, self.guide.margin)
            tile_loss, grad_TE = self._rank(
                self.queries_QE[first:last], self.passages_PE, own_T1, masked_TP, self.grad_passages_PE
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
            masked_TQ, own_T1 = marked[slots_P[positives_T]], rows_Q[first:last, None]
            if self.guide is not None:
                guide_TQ = self.guide.passages_PG[positives_T] @ self.guide.queries_QG.t()
                masked_TQ |= like_answers(guide_TQ, own_T1, self.guide.margin)
            tile_loss, grad_TE = self._rank(
                self.passages_PE[positives_T], self.queries_QE, own_T1, masked_TQ, self.grad_queries_QE
            )
            loss += tile_loss
            self.grad_passages_PE.index_add_(0, positives_T, grad_TE)
        return loss

    def _tiles(self, candidates: int) -> Iterator[tuple[int, int]]:
        """First row of each tile and the one behind its last, so that it has `TILE_SCORES` scores at the most."""
        rows, step = len(self.queries_QE), max(1, TILE_SCORES // candidates)
        return ((first, min(first + step, rows)) for first in range(0, rows, step))

    def _rank(
        self, anchors_TE: Tensor, candidates_CE: Tensor, own_T1: Tensor, masked_TC: Tensor, grad_candidates_CE: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Summed cross-entropy of the anchors' own candidates, and its gradient for the anchors; adds the other one.

        Args:
            anchors_TE: what ranks.
            candidates_CE: what is ranked.
            own_T1: each anchor's own candidate, never masked.
            masked_TC: bool, candidates that are left out; written to.
            grad_candidates_CE: the gradient for the candidates is added here.
        """
        masked_TC.scatter_(1, own_T1, False)
        scores_TC = (anchors_TE * self.scale) @ candidates_CE.t()
        scores_TC.masked_fill_(masked_TC, float("-inf"))
        normaliser_T1 = scores_TC.logsumexp(1, keepdim=True)
        loss = (normaliser_T1 - scores_TC.gather(1, own_T1)).sum()
        grad_TC = scores_TC.sub_(normaliser_T1).exp_()  # the softmax, in place
        grad_TC.scatter_add_(1, own_T1, grad_TC.new_full((1, 1), -1.0).expand_as(own_T1))
        grad_candidates_CE.addmm_(grad_TC.t(), anchors_TE)
        grad_TE = grad_TC @ candidates_CE
        # The scores are the scale times anchors with candidates, so its gradient is that of the anchors with these.
        self.grad_scale += (grad_TE * anchors_TE).sum()
        return loss, grad_TE


def _marked(slots_A: Tensor, columns_A: Tensor, slots: int, columns: int) -> Tensor:
    """True at each answer's slot and column, bool, shape (slots + 1, columns)."""
    marked = torch.zeros(slots + 1, columns, dtype=torch.bool, device=slots_A.device)
    return marked.index_put_((slots_A, columns_A), marked.new_ones(()))
