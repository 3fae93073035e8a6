"""A step's way through the encoder as CUDA graphs: its thousand launches are recorded once and replayed.

A small encoder computes faster than Python can tell a GPU what to do. A graph replays the launches of batches of one
size, so batches are filled up to one of few sizes (`models.fixed_batch`); each has a graph for the forward and one for
the backward pass, and all of them share their memory.

Shapes: `B` texts of a batch, `E` embedding size, `N` values of all adapters.
"""

from __future__ import annotations

import logging
import weakref
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd import Function
from torch.autograd.function import once_differentiable
from torch.nn import functional

from embedtune.kernels.attention.tiles import Table
from embedtune.kernels.dispatch import attention_tables
from embedtune.models.encoder import Encoder
from embedtune.models.fixed_batch import Filled, FixedBatch, fill_up, room_for
from embedtune.models.layers import ReadLayer, all_linears, place_weights, read_layers
from embedtune.models.linears import ReadLinear, flatten_adapters
from embedtune.models.memory import offer, out_of_memory
from embedtune.models.mpnet import is_mpnet
from embedtune.models.packing import TokenIds
from embedtune.models.recompute import recomputes_layers

logger = logging.getLogger(__name__)

MAX_GRAPHS = 12
"""Sizes of batches that have graphs at a time; the oldest goes first."""
MAX_CAPTURES = 64
"""In all. Batches that need more of them are too unlike each other to gain anything."""
POOLINGS = ("mean", "mean_sqrt_len_tokens", "cls", "lasttoken")
"""Those that are the same launches whatever the lengths are."""


class Replay:
    """Embeds the batches of training steps, with graphs where that can be done, else as the encoder does by itself."""

    def __init__(self, encoder: Encoder) -> None:
        self._encoder = encoder
        self._graphs: dict[int, _Graph] = {}
        self._captures = 0
        self._pool: Any = None
        self._flat_N: Tensor | None = None
        self._recorded: tuple[Any, ...] = ()
        self._refusal: str | None = None
        self._waiting: weakref.ref[_Activations] | None = None
        self._parameters: list[nn.Parameter] | None = None
        offer(self)

    def embed(self, texts: Sequence[TokenIds]) -> Tensor:
        """As `Encoder.embed`. A batch goes without graphs while the gradients of the last one have not been taken."""
        if not torch.is_grad_enabled() or self._is_waiting or (found := self._find(texts)) is None:
            return self._encoder.embed(texts)
        flat_N, graph = found
        activations = _Activations()
        self._waiting = weakref.ref(activations)
        embeddings_BE: Tensor = _Replayed.apply(flat_N, graph, activations, len(texts))  # type: ignore[no-untyped-call]
        return functional.normalize(embeddings_BE, dim=-1)

    def release(self) -> bool:
        """Give up the graphs and their memory; returns whether there were any. The next batches are recorded anew."""
        held = bool(self._graphs)
        self._graphs.clear()
        self._pool = self._flat_N = None
        return held

    @property
    def _is_waiting(self) -> bool:
        """Whether the memory that the graphs share holds activations that are still needed."""
        activations = None if self._waiting is None else self._waiting()
        return activations is not None and not activations.used

    def _find(self, texts: Sequence[TokenIds]) -> tuple[Tensor, _Graph] | None:
        """All adapters as one tensor, and a graph that holds the batch; None if it has to go without."""
        refusal = self._refusal or _refusal(self._encoder)
        if refusal is not None:
            self._refuse(refusal)
            return None
        dtype, layers = self._encoder.compute_dtype, read_layers(self._encoder.fused_layers)
        linears = all_linears(layers)
        adapters = {id(tensor) for linear in linears for tensor in linear.adapter or ()}
        if self._parameters is None:  # finding them takes longer than half of a step
            self._parameters = list(self._encoder.parameters())
        if {id(p) for p in self._parameters if p.requires_grad} != adapters:
            self._refuse("not all that is trained are adapters of layers that run fused")
            return None
        if any(linear.plain.dropout for linear in linears):
            self._refuse("adapters have dropout")
            return None
        tables = attention_tables(dtype, _head_size(self._encoder), max(map(len, texts)))
        if tables is None:
            return None
        self._keep_to(frozen_weights(linears))
        flat_N = flatten_adapters(linears, dtype)
        assert flat_N is not None
        filled = fill_up(texts, tables, position_offset=self._encoder.position_offset)
        graph = self._graphs.get(filled.tokens)
        if graph is not None and graph.inputs.holds(filled):
            graph.inputs.put(filled)
        else:
            graph = self._capture(filled, tables, flat_N.detach(), layers)
        return None if graph is None else (flat_N, graph)

    def _keep_to(self, frozen: tuple[Any, ...]) -> None:
        """Give up graphs that were recorded with other frozen weights than these."""
        if frozen != self._recorded:
            self.release()
            self._recorded = frozen

    def _capture(
        self, filled: Filled, tables: Sequence[Table], flat_N: Tensor, layers: list[ReadLayer]
    ) -> _Graph | None:
        """A graph that holds this batch and those like it, in place of the one of that size that did not.

        It holds what that one held too: micro-batches of one size come in turns, some of many short texts, some of few
        long ones.

        Raises:
            RuntimeError: memory ran out.
        """
        outgrown = self._graphs.pop(filled.tokens, None)
        room = room_for(filled) if outgrown is None else room_for(filled).joined(outgrown.inputs.room)
        if self._captures == MAX_CAPTURES:
            self._refuse(f"{MAX_CAPTURES} were made, and batches are still of other sizes")
            return None
        if self._flat_N is None:
            self._pool, self._flat_N = torch.cuda.graph_pool_handle(), torch.empty_like(flat_N).requires_grad_()
        with torch.no_grad():
            self._flat_N.copy_(flat_N)
        inputs = FixedBatch(room, filled, tables, self._encoder.device)
        try:
            graph = _Graph(self._encoder, layers, inputs, self._flat_N, self._pool)
        except RuntimeError as error:
            self.release()
            if out_of_memory(error):
                raise
            self._refuse(str(error).partition("\n")[0])
            return None
        self._captures += 1
        self._graphs[filled.tokens] = graph
        if len(self._graphs) > MAX_GRAPHS:
            del self._graphs[next(iter(self._graphs))]
        return graph

    def _refuse(self, reason: str) -> None:
        if self._refusal is None:
            self._refusal = reason
            self.release()
            logger.info("training steps run without CUDA graphs, because %s", reason)


class _Graph:
    """The launches of batches of one size."""

    def __init__(
        self, encoder: Encoder, layers: list[ReadLayer], inputs: FixedBatch, flat_N: Tensor, pool: Any
    ) -> None:
        self.inputs, self._flat_N = inputs, flat_N

        def embed() -> Tensor:
            return encoder.embed_packed(inputs.packed(), place_weights(layers, flat_N, encoder.compute_dtype))

        self._grad_BE = _warm_up(embed, flat_N)
        self._forward, self._backward = torch.cuda.CUDAGraph(), torch.cuda.CUDAGraph()
        with torch.cuda.graph(self._forward, pool=pool):
            embeddings_BE = embed()
        with torch.cuda.graph(self._backward, pool=pool):
            (self._grad_N,) = torch.autograd.grad(embeddings_BE, (flat_N,), self._grad_BE)
        self._embeddings_BE = embeddings_BE.detach()

    def forward(self, flat_N: Tensor, count: int) -> Tensor:
        """The embeddings of the first `count` texts of what `inputs` holds."""
        with torch.no_grad():
            self._flat_N.copy_(flat_N)
        self._forward.replay()
        return self._embeddings_BE[:count].clone()

    def backward(self, grad_BE: Tensor) -> Tensor:
        """The gradient of the adapters."""
        self._grad_BE[: len(grad_BE)] = grad_BE
        self._grad_BE[len(grad_BE) :] = 0.0
        self._backward.replay()
        return self._grad_N.clone()


class _Activations:
    """Stands for those of a batch: is alive as long as its gradients can be asked for."""

    used = False


class _Replayed(Function):
    @staticmethod
    def forward(ctx: Any, flat_N: Tensor, graph: _Graph, activations: _Activations, count: int) -> Tensor:
        ctx.graph, ctx.activations = graph, activations
        return graph.forward(flat_N, count)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:
        if ctx.activations.used:
            raise RuntimeError("the gradients of a replayed batch can be taken once")
        ctx.activations.used = True
        return ctx.graph.backward(grad_outputs[0]), None, None, None


def frozen_weights(linears: Iterable[ReadLinear]) -> tuple[Any, ...]:
    """Which weights and biases these are: equal as long as a recorded graph finds them where they were."""
    tensors = [tensor for linear in linears for tensor in linear.plain[:2]]
    # What makes a 4-bit layer's weight is another object each time it is asked for, but equal to the last one.
    return tuple(tensor.data_ptr() if isinstance(tensor, Tensor) else tensor for tensor in tensors)


def _warm_up(embed: Callable[[], Tensor], flat_N: Tensor) -> Tensor:
    """Run both passes once, as what they compile and set up can't be recorded; returns room for output gradients."""
    stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        embeddings_BE = embed()
        grad_BE = torch.zeros_like(embeddings_BE)
        torch.autograd.grad(embeddings_BE, (flat_N,), grad_BE)
    torch.cuda.current_stream().wait_stream(stream)
    return grad_BE


def _head_size(encoder: Encoder) -> int:
    heads: int = encoder.backbone.config.num_attention_heads
    return encoder.width // heads


def _refusal(encoder: Encoder) -> str | None:
    """Why no step of this encoder can be recorded, if so."""
    if encoder.device.type != "cuda":
        return f"the device is {encoder.device.type}"
    if not encoder.packed or not encoder.fused_layers:
        return "the model has no layers that run fused"
    if encoder.autocast_dtype is not None:
        return "weights are trained"
    if is_mpnet(encoder.backbone):
        return "MPNet's attention bias is as large as the longest text"
    if recomputes_layers(encoder.backbone):
        return "activations are computed again"
    if torch.are_deterministic_algorithms_enabled():
        return "algorithms are to be deterministic"
    if encoder[1].pooling_mode not in POOLINGS:
        return f"launches of {encoder[1].pooling_mode} pooling depend on the texts"
    return None
