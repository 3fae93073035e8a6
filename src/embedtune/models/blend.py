"""Between the base and the tuned model: their weights mixed (WiSE-FT, Wortsman et al. 2022).

Fine-tuning moves the weights along a path on which the models in between work too. A little of the way back often costs
nothing on the task and returns much of what was forgotten. Weight 0 is the base as it was published, 1 what
`Encoder.merged` makes of the trained encoder, whatever was trained: an adapter of any kind, on 4-bit
weights or others, biases, whole modules or all weights. With 4-bit weights the way back thus also leads from the
quantised weights to the original ones: 0 has no quantisation error, 1 has all of it, unless the adapter is merged into
the original.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping

import torch
from sentence_transformers import SentenceTransformer
from torch import Tensor

from embedtune.models.encoder import Encoder
from embedtune.models.load import load_encoder
from embedtune.models.merge import take_over_settings
from embedtune.models.plain import load_sentence_transformer

State = Mapping[str, Tensor]


def blended_model(encoder: Encoder, weight: float, *, into_original: bool = False) -> SentenceTransformer:
    """A plain model on the CPU with the weights base + weight * (tuned - base), to be saved.

    Two copies of the model are in memory meanwhile, in the dtype of the checkpoint; the blend is computed in fp32.

    Args:
        encoder: trained or not.
        weight: from 0, the base, to 1, the tuned model, bit for bit.
        into_original: as in `Encoder.merged`.

    Raises:
        ValueError: the weight is not between 0 and 1.
    """
    _check(weight)
    blend = encoder.merged(into_original=into_original)
    _write_between(_base(encoder).state_dict(), blend.state_dict(), weight, into=blend.state_dict())
    return blend


def blended(encoder: Encoder, weight: float, *, into_original: bool = False) -> Encoder:
    """An encoder without an adapter, frozen, with these weights, to be measured: where the given one is, and in its
    precision. What is saved is `blended_model`, whose weights are not rounded to that precision.

    Arguments and errors are those of `blended_model`.
    """
    return next(blends(encoder, [weight], into_original=into_original))[1]


def blends(
    encoder: Encoder, weights: Iterable[float], *, into_original: bool = False
) -> Iterator[tuple[float, Encoder]]:
    """For each weight an encoder as `blended` makes it, but always the same one, so each is valid until the next.

    Base and tuned model stay on the CPU meanwhile, in the dtype of the checkpoint.

    Raises:
        ValueError: a weight is not between 0 and 1.
    """
    tuned, base = encoder.merged(into_original=into_original).state_dict(), _base(encoder).state_dict()
    plain = load_encoder(encoder.source)
    take_over_settings(encoder, plain)
    plain.requires_grad_(False).to(plain.device)
    for weight in weights:
        _check(weight)
        _write_between(base, tuned, weight, into=plain.state_dict())
        yield weight, plain


def _base(encoder: Encoder) -> SentenceTransformer:
    """The published model, with as many modules behind the backbone as the encoder has."""
    base, _ = load_sentence_transformer(encoder.source, device=torch.device("cpu"), kind=SentenceTransformer)
    return base


@torch.no_grad()
def _write_between(base: State, tuned: State, weight: float, *, into: State) -> None:
    """Write base + weight * (tuned - base) into the tensors of the third, which may be the tuned ones."""
    for name, target in into.items():
        end = tuned[name]
        start = base.get(name)
        if start is None or not end.is_floating_point():
            target.copy_(end)
        else:
            # lerp gives its ends exactly: from the middle on it counts from the second one.
            target.copy_(torch.lerp(start.float(), end.float(), weight))


def _check(weight: float) -> None:
    if not 0 <= weight <= 1:
        raise ValueError(f"blend weight: got {weight}, expected a number from 0 (the base) to 1 (the tuned model)")
