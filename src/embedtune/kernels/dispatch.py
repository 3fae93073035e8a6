"""Which version of an operation runs: chosen once for a device and dtype, with the reason in the log."""

from __future__ import annotations

import functools
import importlib.util
import logging
from collections.abc import Callable
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.nn import functional

from embedtune.kernels.activation import native as native_activation
from embedtune.kernels.activation import reference as plain_activation
from embedtune.kernels.attention import grouped, native
from embedtune.kernels.attention.layout import PackedLayout
from embedtune.kernels.attention.tiles import Table
from embedtune.kernels.linear import onednn
from embedtune.kernels.native import build
from embedtune.kernels.norm import LayerNorm, Normalised
from embedtune.kernels.norm import reference as plain_norm

logger = logging.getLogger(__name__)

VARLEN_HEAD_SIZES = range(8, 257, 8)
"""Head sizes that torch's variable-length flash attention takes."""

MAX_TRITON_HEAD_SIZE = 256
SHORT_LENGTH = 2048
"""In half precision, Triton's packed attention is used where the typical text has at most so many tokens: on an H100 it
is 2.5 times as fast as flash attention at a question's and a passage's lengths, and still ahead at this one."""


class PackedAttention(Protocol):
    """The signature that every version of packed attention shares; see `attention.reference`."""

    def __call__(
        self,
        query_THD: Tensor,
        key_TKD: Tensor,
        value_TKD: Tensor,
        layout: PackedLayout,
        *,
        scale: float,
        causal: bool = False,
        window: int | None = None,
        bias_HLL: Tensor | None = None,
    ) -> Tensor: ...


AddNorm = Callable[[Tensor, Tensor, LayerNorm], Normalised]
NormBackward = Callable[[Tensor, Tensor, Tensor, Tensor, LayerNorm], Tensor]
ActivationBackward = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]
Linear = Callable[[Tensor, Tensor, Tensor | None], Tensor]

TRITON_DTYPES = (torch.float16, torch.bfloat16, torch.float32)
MAX_NORM_SIZE = 8192
"""Largest hidden size for the Triton LayerNorm, which holds a token's values in registers."""


@functools.cache
def choose_attention(device_type: str, dtype: torch.dtype, head_size: int, *, biased: bool = False) -> PackedAttention:
    """The fastest packed attention for this device, dtype and head size, that takes a bias if it is `biased`."""
    if device_type == "cpu":
        native_refusal = _native_attention_refusal(dtype, head_size, biased)
        if native_refusal is None:
            logger.info("packed attention: compiled for this CPU, because the device is cpu and the dtype %s", dtype)
            return native.packed_attention
        logger.info("packed attention: grouped bmm, because the device is cpu and %s", native_refusal)
        return grouped.packed_attention
    if device_type != "cuda":
        logger.info("packed attention: grouped bmm, because the device is %s", device_type)
        return grouped.packed_attention
    refusal, varlen_refusal = _triton_attention_refusal(dtype, head_size), _varlen_refusal(dtype, head_size, biased)
    if varlen_refusal is None:
        from embedtune.kernels.attention import varlen

        if refusal is None and SHORT_LENGTH:
            logger.info("packed attention: Triton for texts of up to %d tokens, varlen flash for others", SHORT_LENGTH)
            return _by_length
        logger.info("packed attention: varlen flash, because the device is CUDA and the dtype %s", dtype)
        return varlen.packed_attention
    if refusal is None:
        from embedtune.kernels.attention import triton

        logger.info("packed attention: Triton, because %s", varlen_refusal)
        return triton.packed_attention
    logger.info("packed attention: grouped bmm, because %s and %s", varlen_refusal, refusal)
    return grouped.packed_attention


def attention_tables(dtype: torch.dtype, head_size: int, longest: int) -> tuple[Table, ...] | None:
    """The tables by which packed attention cuts batches of texts up to that long on CUDA.

    None if the launches of the attention that is chosen for them depend on more than how many tiles there are.
    """
    if longest > SHORT_LENGTH or _triton_attention_refusal(dtype, head_size) is not None:
        return None
    from embedtune.kernels.attention import triton

    return triton.tables(dtype, head_size, torch.device("cuda", torch.cuda.current_device()))


def _by_length(query_THD: Tensor, key_TKD: Tensor, value_TKD: Tensor, layout: PackedLayout, **options: Any) -> Tensor:
    """Triton where most tokens are in short sequences, which would leave the tiles of flash attention half empty."""
    from embedtune.kernels.attention import triton, varlen

    attend = triton.packed_attention if layout.typical_length <= SHORT_LENGTH else varlen.packed_attention
    return attend(query_THD, key_TKD, value_TKD, layout, **options)


def _native_attention_refusal(dtype: torch.dtype, head_size: int, biased: bool) -> str | None:
    if biased:
        return "compiled attention takes no attention bias"
    return native.refused(dtype, head_size) or build.why_not()


def _triton_attention_refusal(dtype: torch.dtype, head_size: int) -> str | None:
    if head_size > MAX_TRITON_HEAD_SIZE:
        return f"Triton's takes head sizes up to {MAX_TRITON_HEAD_SIZE}, not {head_size}"
    refusal = _triton_refusal("cuda", dtype)
    if refusal is None and torch.cuda.get_device_capability()[0] < 8:
        refusal = "Triton needs compute capability 8.0 (Ampere) or newer"
    return refusal


def _varlen_refusal(dtype: torch.dtype, head_size: int, biased: bool) -> str | None:
    if biased:
        return "varlen flash takes no attention bias"
    if dtype not in (torch.float16, torch.bfloat16):
        return f"varlen flash takes fp16 and bf16, not {dtype}"
    if head_size not in VARLEN_HEAD_SIZES:
        return f"varlen flash does not take head size {head_size}"
    if torch.cuda.get_device_capability()[0] < 8:
        return "varlen flash needs compute capability 8.0 (Ampere) or newer"
    return None


@functools.cache
def choose_norm(device_type: str, dtype: torch.dtype, size: int) -> tuple[AddNorm, NormBackward]:
    """Residual addition with LayerNorm, forward and backward, for tokens of that many values."""
    reason = _triton_refusal(device_type, dtype)
    if reason is None and size > MAX_NORM_SIZE:
        reason = f"a hidden size of {size} does not fit its registers"
    if reason is not None:
        logger.info("residual and norm: torch's operations, because %s", reason)
        return plain_norm.add_norm, plain_norm.norm_backward
    from embedtune.kernels.norm import triton

    logger.info("residual and norm: Triton, because the device is CUDA and the dtype %s", dtype)
    return triton.add_norm, triton.norm_backward


@functools.cache
def choose_activation(device_type: str, dtype: torch.dtype) -> ActivationBackward:
    """GELU computed again together with its backward."""
    if device_type == "cpu":
        reason = native_activation.refused(dtype) or build.why_not()
        if reason is None:
            logger.info("activation: compiled for this CPU, because the device is cpu and the dtype %s", dtype)
            return native_activation.gelu_and_backward
        reason = f"the device is cpu and {reason}"
    else:
        reason = _triton_refusal(device_type, dtype)
    if reason is not None:
        logger.info("activation: torch's operations, because %s", reason)
        return plain_activation.gelu_and_backward
    from embedtune.kernels.activation import triton

    logger.info("activation: Triton, because the device is CUDA and the dtype %s", dtype)
    return triton.gelu_and_backward


@functools.cache
def choose_linear(device_type: str, dtype: torch.dtype) -> Linear:
    """A linear layer's product and bias, without a gradient."""
    reason = onednn.refused(dtype) if device_type == "cpu" else f"the device is {device_type}"
    if reason is not None:
        logger.info("linear: torch's, because %s", reason)
        return functional.linear
    logger.info("linear: oneDNN with the bias in its epilogue, because the device is cpu and the dtype %s", dtype)
    return onednn.linear


def _triton_refusal(device_type: str, dtype: torch.dtype) -> str | None:
    if device_type != "cuda":
        return f"the device is {device_type}"
    if dtype not in TRITON_DTYPES:
        return f"the dtype is {dtype}"
    if importlib.util.find_spec("triton") is None:
        return "triton is not installed"
    return None
