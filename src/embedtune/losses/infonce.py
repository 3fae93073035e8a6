"""The in-batch contrastive loss, with known positives masked: the plain version, which holds all scores at once.

Shapes: `Q` queries, `P` passages of the batch (positives and hard negatives), `E` embedding size, `A` known answers,
`T` anchors that rank, `C` candidates that they rank.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from embedtune.losses.batch import Guide


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
    """Cross-entropy of each query's own passage against the batch's other passages.

    InfoNCE (van den Oord et al. 2018, eq. 4) with in-batch negatives (Henderson et al. 2017), known elsewhere as
    MultipleNegativesRankingLoss. A passage that is known to answer a query is never that query's negative, nor is one
    that a guide scores above its own (GISTEmbed, Solatorio 2024, without its scores of queries with
    queries and of passages with passages).

    Args:
        queries_QE: normalised query embeddings; one row for each training row, a question may come twice.
        passages_PE: normalised passage embeddings.
        positives_Q: column of each row's own positive, int64.
        answers_2A: row of a query and column of a passage that is known to answer it, int64, in any order; own
            positives may be among them.
        scale: factor on the cosine similarities, the inverse of the temperature.
        both_directions: also rank the queries of the batch for each row's positive, and take the mean of the two
            (Radford et al. 2021, fig. 3).
        guide: embeddings that tell which further passages, or queries, look like answers.

    Returns:
        The mean loss, a scalar.
    """
    scores_QP = scale * (queries_QE @ passages_PE.t())
    rows_Q = torch.arange(len(positives_Q), device=positives_Q.device)
    answers_QP = torch.zeros_like(scores_QP, dtype=torch.bool)
    # The value is a tensor, as a plain True would be copied to the GPU first, and waited for.
    true = answers_QP.new_ones(())
    answers_QP.index_put_((answers_2A[0], answers_2A[1]), true)
    own_QP = torch.zeros_like(answers_QP).index_put_((rows_Q, positives_Q), true)
    guide_QP, margin = (None, 0.0) if guide is None else (guide.queries_QG @ guide.passages_PG.t(), guide.margin)
    masked_QP = answers_QP if guide_QP is None else answers_QP | like_answers(guide_QP, positives_Q[:, None], margin)
    loss = functional.cross_entropy(scores_QP.masked_fill(masked_QP & ~own_QP, float("-inf")), positives_Q)
    if not both_directions:
        return loss
    # Transposed: row q's positive ranks the queries; any other query that it answers is masked.
    scores_QQ = scores_QP.index_select(1, positives_Q).t()
    masked_QQ = answers_QP.index_select(1, positives_Q).t()
    if guide_QP is not None:
        masked_QQ = masked_QQ | like_answers(guide_QP.index_select(1, positives_Q).t(), rows_Q[:, None], margin)
    own_QQ = torch.eye(len(rows_Q), dtype=torch.bool, device=masked_QQ.device)
    backward_loss = functional.cross_entropy(scores_QQ.masked_fill(masked_QQ & ~own_QQ, float("-inf")), rows_Q)
    return (loss + backward_loss) / 2


def like_answers(guide_TC: Tensor, own_T1: Tensor, margin: float) -> Tensor:
    """Bool, shape (T, C): candidates that the guide scores above the anchor's own one, less the margin.

    Args:
        guide_TC: the guide's scores.
        own_T1: each anchor's own candidate.
        margin: of `Guide`.
    """
    return guide_TC > guide_TC.gather(1, own_T1) - margin
