"""A frozen base in 4 bits: the encoder's linear layers as NF4, dequantised when they are used (Dettmers et al. 2023).

bitsandbytes stores and converts the weights. Its own forward is not used: on CPUs with AVX512-BF16 it repacks the
weights in place, which breaks training, and everywhere dequantising and then multiplying is as fast.
"""

from __future__ import annotations

from typing import Any

import psutil
import torch
from torch import Tensor, nn

from embedtune.errors import MissingExtraError
from embedtune.kernels.autocast import compute_dtype, no_autocast
from embedtune.kernels.linear import fused
from embedtune.models.encoder import Encoder
from embedtune.models.targets import quantisable_linears

try:
    from bitsandbytes.nn import Linear4bit

    from embedtune.kernels.nf4 import bnb
except ImportError as error:
    raise MissingExtraError("bitsandbytes", extra="quant", purpose="a base in 4 bits") from error

MAX_SHARE_OF_MEMORY = 0.25
"""A dequantised copy is kept if it takes no more than this share of the memory that is free."""


class NF4Linear(Linear4bit):  # type: ignore[misc]  # bitsandbytes is not typed
    """A frozen linear layer with NF4 weights; PEFT knows it as bitsandbytes' layer."""

    def __init__(self, linear: nn.Linear, device: torch.device) -> None:
        super().__init__(
            linear.in_features,
            linear.out_features,
            bias=False,
            device="meta",
            quant_type="nf4",
            compress_statistics=True,
        )
        self.weight = bnb.quantize(linear.weight, device)
        self.quant_state = self.weight.quant_state
        self.bias = linear.bias
        self.dense_copy: Tensor | None = None

    def frozen_weight(self, dtype: torch.dtype) -> Tensor:
        """The weight, shape (O, I), dequantised now or when the layer was made."""
        if self.dense_copy is not None:
            return self.dense_copy.to(dtype)
        return bnb.dequantize(self.weight, dtype)

    def forward(self, x: Tensor) -> Tensor:
        """x Wᵀ + b for x of shape (..., I)."""
        x_TI = x.reshape(-1, x.shape[-1]).to(compute_dtype(x))
        with no_autocast(x):
            out_TO = fused.frozen_linear(x_TI, self.frozen_weight, self.bias)
        return out_TO.view(*x.shape[:-1], -1)


def quantize(encoder: Encoder, *, low_memory: bool, device: torch.device | None = None) -> str:
    """Replace the linear layers that contribute to the token embeddings by NF4 ones, in place.

    Args:
        encoder: without an adapter yet.
        low_memory: dequantise at each use, rather than keep a dequantised copy where memory allows it.
        device: where the 4-bit weights go, if not to where the encoder is.

    Returns:
        What was done, a sentence.
    """
    backbone, dtype = encoder.backbone, encoder.compute_dtype
    device = device or encoder.device
    names = quantisable_linears(backbone)
    before = 0
    for name in names:
        linear = backbone.get_submodule(name)
        assert isinstance(linear, nn.Linear)
        before += linear.weight.nbytes
        backbone.set_submodule(name, NF4Linear(linear, device))
    vars(backbone)["is_loaded_in_4bit"] = True  # PEFT asks for it before it looks at the layers
    layers = nf4_layers(encoder)
    values = sum(layer.in_features * layer.out_features for layer in layers.values())
    after = sum(_stored_bytes(layer) for layer in layers.values())
    what = f"{len(names)} linear layers in 4 bits (NF4): {_mb(before)} became {_mb(after)}"
    copy_bytes, free = values * dtype.itemsize, _free_bytes(device)
    if low_memory:
        return f"{what}; dequantised at each use, as --memory low asks"
    if copy_bytes > MAX_SHARE_OF_MEMORY * free:
        return (
            f"{what}; dequantised at each use, as a copy of {_mb(copy_bytes)} would take too much of {_mb(free)} free"
        )
    for layer in layers.values():
        layer.dense_copy = bnb.dequantize(layer.weight, dtype)
    return f"{what}; a dequantised copy of {_mb(copy_bytes)} is kept, which is faster (--memory low keeps none)"


def describe(encoder: Encoder) -> dict[str, Any]:
    """What is in 4 bits, for the results."""
    layers = nf4_layers(encoder).values()
    stored = sum(_stored_bytes(layer) for layer in layers)
    return {
        "what": f"{len(layers)} linear layers in 4 bits (NF4 with double quantisation, {_mb(stored)})",
        "bytes": stored,
        "dequantised_copy": any(layer.dense_copy is not None for layer in layers),
    }


def nf4_layers(encoder: Encoder) -> dict[str, NF4Linear]:
    """The NF4 layers by the names that they have in a plain backbone, with or without an adapter around them."""
    return {
        name.removesuffix(".base_layer"): module
        for name, module in encoder.backbone.named_modules()
        if isinstance(module, NF4Linear)
    }


def _stored_bytes(layer: NF4Linear) -> int:
    state = layer.weight.quant_state
    return int(layer.weight.data.nbytes + state.absmax.nbytes + state.state2.absmax.nbytes)


def _free_bytes(device: torch.device) -> int:
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    return int(psutil.virtual_memory().available)


def _mb(count: int) -> str:
    return f"{count / 2**20:,.0f} MiB"
