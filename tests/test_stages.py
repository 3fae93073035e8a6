"""The calls that a script makes for itself: what they find out where the command line would tell them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from embedtune.config import AdapterConfig, DataConfig, TrainingConfig
from embedtune.data.prepare import prepare
from embedtune.models.adapters import make_trainable
from embedtune.models.encoder import Encoder
from embedtune.stages import build_trainer, tokenize
from embedtune.training.plan import default_lr


@pytest.mark.parametrize("adapter", [{}, {"method": "full"}, {"init": "pissa"}, {"method": "qlora", "init": "loftq"}])
def test_the_trainer_takes_the_learning_rate_of_what_is_trained(
    adapter: dict[str, Any], st_folder: Path, pairs_file: Path, tmp_path: Path, load: Callable[..., Encoder]
) -> None:
    config = AdapterConfig(**adapter)
    encoder = load(st_folder, four_bit=config.method == "qlora")
    make_trainable(encoder, config)
    splits = prepare(DataConfig(train=str(pairs_file)), seed=0)
    trainer = build_trainer(encoder, splits, tokenize(encoder, splits.collection), TrainingConfig(), out=tmp_path)
    assert trainer.plan.lr == default_lr(config.method, config.init)
