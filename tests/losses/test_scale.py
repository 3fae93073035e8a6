"""A learned scale: its gradient in every loss that has it, plain and tiled, and its limits."""

from __future__ import annotations

import math

import pytest
import torch

from embedtune.config import LossConfig
from embedtune.losses import tiled
from embedtune.losses.build import build_loss
from embedtune.losses.scale import LearnedScale
from tests.losses.batches import random_batch, value_and_gradients

CONFIGS = [
    LossConfig(learn_scale=True),
    LossConfig(learn_scale=True, both_directions=True),
    LossConfig(learn_scale=True, distill="kl", distill_temperature=2.0),
    LossConfig(learn_scale=True, distill="margin-mse", distill_weight=0.1),
    LossConfig(learn_scale=True, both_directions=True, matryoshka=(8, 4), guide="self", guide_margin=0.1),
]


@pytest.mark.parametrize("tile_scores", [tiled.TILE_SCORES, 10])
@pytest.mark.parametrize("config", CONFIGS)
def test_its_gradient_is_the_slope_and_all_else_that_of_a_fixed_one(
    config: LossConfig, tile_scores: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tiled, "TILE_SCORES", tile_scores)
    batch, scale = random_batch(), LearnedScale(20.0).double()
    value, *gradients = value_and_gradients(build_loss(config, scale), batch, scale.log_scale)
    fixed = value_and_gradients(build_loss(config, lambda: 20.0), batch)
    torch.testing.assert_close([value, *gradients[:2]], fixed, rtol=1e-6, atol=1e-7)
    step = 1e-4
    above, below = (build_loss(config, lambda f=f: 20.0 * math.exp(f))(batch) for f in (step, -step))  # type: ignore[misc]
    assert gradients[2].item() == pytest.approx(((above - below) / (2 * step)).item(), rel=1e-5)


def test_it_stays_within_its_limits_and_comes_back() -> None:
    scale = LearnedScale(99.0)
    optimizer = torch.optim.SGD(scale.parameters(), lr=1.0)
    for direction, expected in ((-1, 100.0), (-1, 100.0), (1, 100 / math.e), (1, 100 / math.e**2)):
        optimizer.zero_grad()
        (direction * scale().log()).backward()
        optimizer.step()
        assert scale().item() == pytest.approx(expected, rel=1e-5)
