"""The parts of a post-norm layer as one autograd function each: fewer passes over memory, less kept, fewer launches.

Query, key and value are one product. Residuals are added in place. The feed-forward half keeps its input and the values
before the activation; those behind it are computed again, as they are the largest tensor of the layer.

Shapes: `T` tokens, `I` input features, `O` output features, `E` hidden size, `F` feed-forward size, `R` rank.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function
from torch.nn import functional

from embedtune.kernels.dispatch import choose_activation, choose_linear, choose_norm
from embedtune.kernels.layer.reference import Masks
from embedtune.kernels.linear.adapted import (
    AdaptedLinear,
    add_masked,
    bare,
    bias_in,
    gradients,
    input_gradient,
    kept,
    multiply,
    product_weight,
    recalled,
)
from embedtune.kernels.linear.weight import dense
from embedtune.kernels.norm import LayerNorm
from embedtune.kernels.norm.reference import trained_norm_backward


def project(x_TI: Tensor, linears: Sequence[AdaptedLinear], mask_TI: Tensor | None = None) -> tuple[Tensor, ...]:
    """Same signature and result as `reference.project`; the outputs are parts of one tensor."""
    trained = (tensor for linear in linears for tensor in linear.trained)
    out: tuple[Tensor, ...] = _Project.apply(x_TI, mask_TI, tuple(linears), *trained)
    return out


def project_add_norm(
    x_TI: Tensor, linear: AdaptedLinear, residual_TE: Tensor, norm: LayerNorm, mask_TI: Tensor | None = None
) -> Tensor:
    """Same signature and result as `reference.project_add_norm`."""
    out: Tensor = _ProjectAddNorm.apply(x_TI, residual_TE, mask_TI, linear, norm, *linear.trained, *norm.trained)
    return out


def feed_forward_add_norm(
    x_TE: Tensor, up: AdaptedLinear, down: AdaptedLinear, norm: LayerNorm, masks: Masks = (None, None)
) -> Tensor:
    """Same signature and result as `reference.feed_forward_add_norm`."""
    out: Tensor = _FeedForwardAddNorm.apply(x_TE, *masks, up, down, norm, *up.trained, *down.trained, *norm.trained)
    return out


class _Project(Function):
    @staticmethod
    def forward(
        ctx: Any, x_TI: Tensor, mask_TI: Tensor | None, linears: tuple[AdaptedLinear, ...], *trained: Tensor | None
    ) -> tuple[Tensor, ...]:
        outputs = [_outputs(linear) for linear in linears]
        weight_FI = x_TI.new_empty(sum(outputs), x_TI.shape[1])
        weights = torch.split(weight_FI, outputs)
        for linear, weight_OI in zip(linears, weights, strict=True):
            product_weight(linear, x_TI.dtype, mask_TI, out=weight_OI)
        ctx.linears = [bare(linear) for linear in linears]
        saved = [kept(linear, weight) for linear, weight in zip(linears, weights, strict=True)]
        ctx.save_for_backward(x_TI, mask_TI, *(tensor for tensors in saved for tensor in tensors))
        product = choose_linear(x_TI.device.type, x_TI.dtype)
        out_TF = product(x_TI, weight_FI, _bias(linears, outputs, x_TI))
        parts = torch.split(out_TF, outputs, dim=1)
        for linear, part_TO in zip(linears, parts, strict=True):
            add_masked(part_TO, x_TI, linear, mask_TI)
        return parts

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:
        x_TI, mask_TI, *saved = ctx.saved_tensors
        grad_x_TI: Tensor | None = None
        of_trained: list[Tensor | None] = []
        for number, (linear, grad_TO) in enumerate(zip(ctx.linears, grad_outputs, strict=True)):
            weight_OI, whole = recalled(linear, saved[3 * number : 3 * number + 3], grad_TO.dtype, mask_TI)
            if ctx.needs_input_grad[0]:
                grad_x_TI = input_gradient(grad_TO, whole, weight_OI, mask_TI, onto=grad_x_TI)
            wanted = ctx.needs_input_grad[3 + 4 * number : 7 + 4 * number]
            of_trained += gradients(x_TI, grad_TO, whole, mask_TI, wanted)
        return grad_x_TI, None, None, *of_trained


class _ProjectAddNorm(Function):
    @staticmethod
    def forward(
        ctx: Any,
        x_TI: Tensor,
        residual_TE: Tensor,
        mask_TI: Tensor | None,
        linear: AdaptedLinear,
        norm: LayerNorm,
        *trained: Tensor | None,
    ) -> Tensor:
        add_norm, _ = choose_norm(x_TI.device.type, x_TI.dtype, residual_TE.shape[1])
        weight_EI = product_weight(linear, x_TI.dtype, mask_TI)
        normalised = add_norm(multiply(x_TI, linear, weight_EI, mask_TI), residual_TE, norm)
        ctx.linear, ctx.norm = bare(linear), norm
        ctx.save_for_backward(x_TI, mask_TI, *normalised[1:], *kept(linear, weight_EI))
        return normalised.out_TE

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:
        (grad_TE,) = grad_outputs
        x_TI, mask_TI, sum_TE, mean_T, rstd_T, *saved = ctx.saved_tensors
        weight_EI, linear = recalled(ctx.linear, saved, grad_TE.dtype, mask_TI)
        grad_sum_TE, *of_norm = _norm_backward(grad_TE, sum_TE, mean_T, rstd_T, ctx.norm, ctx.needs_input_grad[9:])
        grad_x_TI = input_gradient(grad_sum_TE, linear, weight_EI, mask_TI) if ctx.needs_input_grad[0] else None
        of_trained = gradients(x_TI, grad_sum_TE, linear, mask_TI, ctx.needs_input_grad[5:9])
        return grad_x_TI, grad_sum_TE, None, None, None, *of_trained, *of_norm


class _FeedForwardAddNorm(Function):
    @staticmethod
    def forward(
        ctx: Any,
        x_TE: Tensor,
        mask_TE: Tensor | None,
        mask_TF: Tensor | None,
        up: AdaptedLinear,
        down: AdaptedLinear,
        norm: LayerNorm,
        *trained: Tensor | None,
    ) -> Tensor:
        dtype = x_TE.dtype
        add_norm, _ = choose_norm(x_TE.device.type, dtype, x_TE.shape[1])
        weight_FE, weight_EF = product_weight(up, dtype, mask_TE), product_weight(down, dtype, mask_TF)
        before_TF = multiply(x_TE, up, weight_FE, mask_TE)
        normalised = add_norm(multiply(functional.gelu(before_TF), down, weight_EF, mask_TF), x_TE, norm)
        ctx.up, ctx.down, ctx.norm = bare(up), bare(down), norm
        ctx.save_for_backward(
            x_TE, mask_TE, mask_TF, before_TF, *normalised[1:], *kept(up, weight_FE), *kept(down, weight_EF)
        )
        return normalised.out_TE

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:
        (grad_TE,) = grad_outputs
        x_TE, mask_TE, mask_TF, before_TF, sum_TE, mean_T, rstd_T, *saved = ctx.saved_tensors
        dtype, needed = grad_TE.dtype, ctx.needs_input_grad
        gelu_and_backward = choose_activation(grad_TE.device.type, dtype)
        weight_FE, up = recalled(ctx.up, saved[:3], dtype, mask_TE)
        weight_EF, down = recalled(ctx.down, saved[3:], dtype, mask_TF)
        grad_sum_TE, *of_norm = _norm_backward(grad_TE, sum_TE, mean_T, rstd_T, ctx.norm, needed[14:])
        after_TF, grad_before_TF = gelu_and_backward(before_TF, input_gradient(grad_sum_TE, down, weight_EF, mask_TF))
        of_down = gradients(after_TF, grad_sum_TE, down, mask_TF, needed[10:14])
        del after_TF
        of_up = gradients(x_TE, grad_before_TF, up, mask_TE, needed[6:10])
        grad_x_TE = input_gradient(grad_before_TF, up, weight_FE, mask_TE, onto=grad_sum_TE) if needed[0] else None
        return grad_x_TE, None, None, None, None, None, *of_up, *of_down, *of_norm


def _norm_backward(
    grad_TE: Tensor, sum_TE: Tensor, mean_T: Tensor, rstd_T: Tensor, norm: LayerNorm, trained: Sequence[bool]
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """Gradient of what was normalised, and of the norm's weight and bias if they are trained."""
    if any(trained):
        return trained_norm_backward(grad_TE, sum_TE, mean_T, rstd_T, norm, wanted=trained)
    _, norm_backward = choose_norm(grad_TE.device.type, grad_TE.dtype, grad_TE.shape[1])
    return norm_backward(grad_TE, sum_TE, mean_T, rstd_T, norm), None, None


def _outputs(linear: AdaptedLinear) -> int:
    """Output features; a weight that is made when needed need not be made to tell."""
    of = linear.weight_OI if isinstance(linear.weight_OI, Tensor) else linear.bias_O
    of = linear.lora_b_OR if of is None else of
    return len(dense(linear.weight_OI, torch.float32) if of is None else of)


def _bias(linears: Sequence[AdaptedLinear], outputs: Sequence[int], like: Tensor) -> Tensor | None:
    """The biases of several layers as one; None if none has any."""
    biases = [bias_in(linear.bias_O, like.dtype) for linear in linears]
    if all(bias is None for bias in biases):
        return None
    return torch.cat([like.new_zeros(n) if b is None else b for b, n in zip(biases, outputs, strict=True)])
