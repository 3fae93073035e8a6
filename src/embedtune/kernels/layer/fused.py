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

from embedtune.kernels.dispatch import choose_activation, choose_norm
from embedtune.kernels.linear.adapted import (
    AdaptedLinear,
    adapter_gradients,
    bare,
    bias_in,
    kept,
    merged_weight,
    recalled,
)
from embedtune.kernels.linear.weight import dense
from embedtune.kernels.norm import LayerNorm


def project(x_TI: Tensor, linears: Sequence[AdaptedLinear]) -> tuple[Tensor, ...]:
    """Same signature and result as `reference.project`; the outputs are parts of one tensor."""
    out: tuple[Tensor, ...] = _Project.apply(x_TI, tuple(linears), *(p for linear in linears for p in linear.adapter))
    return out


def project_add_norm(x_TI: Tensor, linear: AdaptedLinear, residual_TE: Tensor, norm: LayerNorm) -> Tensor:
    """Same signature and result as `reference.project_add_norm`."""
    out: Tensor = _ProjectAddNorm.apply(x_TI, residual_TE, linear, norm, *linear.adapter)
    return out


def feed_forward_add_norm(x_TE: Tensor, up: AdaptedLinear, down: AdaptedLinear, norm: LayerNorm) -> Tensor:
    """Same signature and result as `reference.feed_forward_add_norm`."""
    out: Tensor = _FeedForwardAddNorm.apply(x_TE, up, down, norm, *up.adapter, *down.adapter)
    return out


class _Project(Function):
    @staticmethod
    def forward(
        ctx: Any, x_TI: Tensor, linears: tuple[AdaptedLinear, ...], *adapters: Tensor | None
    ) -> tuple[Tensor, ...]:
        dtype = x_TI.dtype
        outputs = [_outputs(linear) for linear in linears]
        weight_FI = x_TI.new_empty(sum(outputs), x_TI.shape[1])
        weights = torch.split(weight_FI, outputs)
        for linear, weight_OI in zip(linears, weights, strict=True):
            merged_weight(linear, dtype, out=weight_OI)
        ctx.linears = [bare(linear) for linear in linears]
        saved = [kept(linear, weight) for linear, weight in zip(linears, weights, strict=True)]
        ctx.save_for_backward(x_TI, *(tensor for tensors in saved for tensor in tensors))
        out_TF = functional.linear(x_TI, weight_FI, _bias(linears, outputs, x_TI))
        return torch.split(out_TF, outputs, dim=1)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:
        x_TI, *saved = ctx.saved_tensors
        grad_x_TI: Tensor | None = None
        gradients: list[Tensor | None] = []
        for number, (linear, grad_TO) in enumerate(zip(ctx.linears, grad_outputs, strict=True)):
            merged_OI, whole = recalled(linear, saved[3 * number : 3 * number + 3], grad_TO.dtype)
            if ctx.needs_input_grad[0]:
                grad_x_TI = grad_TO @ merged_OI if grad_x_TI is None else grad_x_TI.addmm_(grad_TO, merged_OI)
            gradients += adapter_gradients(x_TI, grad_TO, whole)
        return grad_x_TI, None, *gradients


class _ProjectAddNorm(Function):
    @staticmethod
    def forward(
        ctx: Any,
        x_TI: Tensor,
        residual_TE: Tensor,
        linear: AdaptedLinear,
        norm: LayerNorm,
        *adapter: Tensor | None,
    ) -> Tensor:
        dtype = x_TI.dtype
        add_norm, _ = choose_norm(x_TI.device.type, dtype, residual_TE.shape[1])
        merged_EI = merged_weight(linear, dtype)
        projected_TE = functional.linear(x_TI, merged_EI, bias_in(linear.bias_O, dtype))
        normalised = add_norm(projected_TE, residual_TE, norm)
        ctx.linear, ctx.norm = bare(linear), norm
        ctx.save_for_backward(x_TI, *normalised[1:], *kept(linear, merged_EI))
        return normalised.out_TE

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:
        (grad_TE,) = grad_outputs
        x_TI, sum_TE, mean_T, rstd_T, *saved = ctx.saved_tensors
        _, norm_backward = choose_norm(grad_TE.device.type, grad_TE.dtype, grad_TE.shape[1])
        merged_EI, linear = recalled(ctx.linear, saved, grad_TE.dtype)
        grad_sum_TE = norm_backward(grad_TE, sum_TE, mean_T, rstd_T, ctx.norm)
        grad_x_TI = grad_sum_TE @ merged_EI if ctx.needs_input_grad[0] else None
        return grad_x_TI, grad_sum_TE, None, None, *adapter_gradients(x_TI, grad_sum_TE, linear)


class _FeedForwardAddNorm(Function):
    @staticmethod
    def forward(
        ctx: Any, x_TE: Tensor, up: AdaptedLinear, down: AdaptedLinear, norm: LayerNorm, *adapters: Tensor | None
    ) -> Tensor:
        dtype = x_TE.dtype
        add_norm, _ = choose_norm(x_TE.device.type, dtype, x_TE.shape[1])
        merged_FE, merged_EF = merged_weight(up, dtype), merged_weight(down, dtype)
        before_TF = functional.linear(x_TE, merged_FE, bias_in(up.bias_O, dtype))
        projected_TE = functional.linear(functional.gelu(before_TF), merged_EF, bias_in(down.bias_O, dtype))
        normalised = add_norm(projected_TE, x_TE, norm)
        ctx.up, ctx.down, ctx.norm = bare(up), bare(down), norm
        ctx.save_for_backward(x_TE, before_TF, *normalised[1:], *kept(up, merged_FE), *kept(down, merged_EF))
        return normalised.out_TE

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:
        (grad_TE,) = grad_outputs
        x_TE, before_TF, sum_TE, mean_T, rstd_T, *saved = ctx.saved_tensors
        dtype = grad_TE.dtype
        _, norm_backward = choose_norm(grad_TE.device.type, dtype, grad_TE.shape[1])
        gelu_and_backward = choose_activation(grad_TE.device.type, dtype)
        merged_FE, up = recalled(ctx.up, saved[:3], dtype)
        merged_EF, down = recalled(ctx.down, saved[3:], dtype)
        grad_sum_TE = norm_backward(grad_TE, sum_TE, mean_T, rstd_T, ctx.norm)
        after_TF, grad_before_TF = gelu_and_backward(before_TF, grad_sum_TE @ merged_EF)
        down_gradients = adapter_gradients(after_TF, grad_sum_TE, down)
        del after_TF
        up_gradients = adapter_gradients(x_TE, grad_before_TF, up)
        grad_x_TE = grad_sum_TE.addmm_(grad_before_TF, merged_FE) if ctx.needs_input_grad[0] else None
        return grad_x_TE, None, None, None, *up_gradients, *down_gradients


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
