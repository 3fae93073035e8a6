"""`embedtune demo [--out DIR]`: the whole job on the built-in example."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from embedtune.cli.options import parse
from embedtune.cli.train import run
from embedtune.config import DataConfig, ModelConfig, OutputConfig, TrainConfig, TrainingConfig
from embedtune.demo import data_folder, model_folder


@dataclass(frozen=True, kw_only=True)
class DemoOptions:
    """Fine-tune all-MiniLM-L6-v2 on the built-in ferry handbook and test it on passages it never saw."""

    out: Path = Path("embedtune-demo")
    """Folder to write to."""
    seed: int = 0
    """Drives everything random."""


def main(arguments: Sequence[str]) -> None:
    """Run the demo."""
    options = parse(DemoOptions, arguments, command="demo")
    run(demo_config(options.out, seed=options.seed))


def demo_config(out: Path, *, seed: int) -> TrainConfig:
    """The demo's settings: the defaults, but a larger test split (the example is small) and more epochs."""
    return TrainConfig(
        data=DataConfig(train=str(data_folder()), test_fraction=0.25),
        model=ModelConfig(base=str(model_folder())),
        training=TrainingConfig(epochs=3),
        output=OutputConfig(out=out, seed=seed),
    )
