"""oneDNN's linear layer against torch's, and what happens where it can't be had."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NoReturn

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from embedtune.kernels.dispatch import choose_linear
from embedtune.kernels.linear import onednn
from tests.kernels.poison import poisoned_memory

usable = pytest.mark.skipif(onednn.refused(torch.bfloat16) is not None, reason="oneDNN has no bf16 on this CPU")


@pytest.fixture
def asked_anew() -> Iterator[None]:
    onednn.refused.cache_clear()
    choose_linear.cache_clear()
    yield
    onednn.refused.cache_clear()
    choose_linear.cache_clear()


def random(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).bfloat16()


@usable
@pytest.mark.parametrize("biased", [True, False])
@pytest.mark.parametrize(("tokens", "features", "outputs"), [(1, 1, 1), (7, 33, 5), (130, 384, 1536), (65, 96, 31)])
def test_it_is_a_linear_layer(tokens: int, features: int, outputs: int, biased: bool) -> None:
    x, weight = random(tokens, features, seed=0), random(outputs, features, seed=1)
    bias = random(outputs, seed=2) if biased else None
    wanted = functional.linear(x.double(), weight.double(), None if bias is None else bias.double())
    torch.testing.assert_close(onednn.linear(x, weight, bias).double(), wanted, rtol=1e-2, atol=1e-2)


@usable
def test_it_takes_parts_of_tensors() -> None:
    whole, weights = random(40, 3 * 24, seed=3), random(3 * 16, 24, seed=4)
    x, weight = whole[:, 24:48], weights[16:32]
    torch.testing.assert_close(
        onednn.linear(x, weight, None), functional.linear(x.contiguous(), weight.contiguous()), rtol=1e-2, atol=1e-2
    )


@usable
def test_what_is_in_fresh_memory_does_not_show() -> None:
    with poisoned_memory():
        assert onednn.linear(random(9, 8, seed=5), random(4, 8, seed=6), None).isfinite().all()


@usable
@pytest.mark.usefixtures("asked_anew")
def test_torch_s_is_taken_where_the_operation_is_gone_or_wrong(monkeypatch: pytest.MonkeyPatch) -> None:
    assert choose_linear("cpu", torch.bfloat16) is onednn.linear
    assert choose_linear("cuda", torch.bfloat16) is functional.linear
    assert choose_linear("cpu", torch.float32) is functional.linear

    def gone(*_: object) -> NoReturn:
        raise AttributeError("no _linear_pointwise")

    for instead, reason in ((gone, "no _linear_pointwise"), (lambda x, weight, bias: x @ weight.t(), "another result")):
        onednn.refused.cache_clear()
        choose_linear.cache_clear()
        monkeypatch.setattr(onednn, "linear", instead)
        assert reason in (onednn.refused(torch.bfloat16) or "")
        assert choose_linear("cpu", torch.bfloat16) is functional.linear
