"""A loss for pairs with grades: the higher grade is to have the higher cosine.

Shapes: `N` pairs of the batch.
"""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional


def cosent(cosines_N: Tensor, grades_N: Tensor, *, scale: float) -> Tensor:
    """log(1 + sum of exp(scale * (cos_k - cos_i))) over all i and k of which i has the higher grade.

    Source: CoSENT (Su 2022; Huang et al. 2024). Only the order of the grades counts. Needs the square of N in
    memory.

    Args:
        cosines_N: similarity of each pair's two texts.
        grades_N: how similar they are said to be, in any unit.
        scale: factor on the cosines, the inverse of the temperature.

    Returns:
        The loss, a scalar; 0 where all grades are the same.
    """
    ahead_NN = scale * (cosines_N[None, :] - cosines_N[:, None])
    in_order_NN = grades_N[None, :] >= grades_N[:, None]
    terms = ahead_NN.masked_fill(in_order_NN, float("-inf")).flatten()
    return functional.pad(terms, (1, 0)).logsumexp(dim=0)
