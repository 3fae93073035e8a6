"""Which version of an operation runs: chosen once for a device and dtype, with the reason in the log."""

from __future__ import annotations

import functools
import logging
from typing import Protocol

import torch
from torch import Tensor

from embedtune.kernels.attention import grouped
from embedtune.kernels.attention.layout import PackedLayout

logger = logging.getLogger(__name__)

VARLEN_HEAD_SIZES = range(8, 257, 8)
"""Head sizes that torch's variable-length flash attention takes."""


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


@functools.cache
def choose_attention(device_type: str, dtype: torch.dtype, head_size: int, *, biased: bool = False) -> PackedAttention:
    """The fastest packed attention for this device, dtype and head size, that takes a bias if it is `biased`."""
    if device_type == "cuda":
        reason = _varlen_refusal(dtype, head_size, biased)
        if reason is None:
            from embedtune.kernels.attention import varlen

            logger.info("packed attention: varlen flash, because the device is CUDA and the dtype %s", dtype)
            return varlen.packed_attention
        logger.info("packed attention: grouped bmm, because %s", reason)
    else:
        logger.info("packed attention: grouped bmm, because the device is %s", device_type)
    return grouped.packed_attention


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
