"""What is trained, and on what, where the command line leaves it open."""

from __future__ import annotations

from pathlib import Path

from transformers.utils import logging

from benchmarks import output
from benchmarks.sizes import SHAPES, ShapeName, write_checkpoint
from embedtune.demo import data_folder, model_folder

DEFAULT_BASE = "sentence-transformers/all-MiniLM-L12-v2"


def pairs_source(given: str | None) -> str:
    """The pairs; the built-in ones if none are given."""
    return given or str(data_folder())


def base_model(given: str | None, shape: ShapeName | None, *, demo: bool, folder: Path, seed: int) -> str:
    """The encoder: a given one, one of a known shape with random weights, or the built-in one for the built-in pairs.

    Args:
        given: hub id or folder.
        shape: of the model to make; `given` is its tokenizer then.
        demo: the pairs are the built-in ones.
        folder: where a model that is made goes.
        seed: of its weights.

    Raises:
        ConfigError: the tokenizer has more ids than the shape has embeddings.
        ModelError: there is no such tokenizer.
        MissingExtraError: the package of the built-in model is not installed.
    """
    base = given or (str(model_folder()) if demo else DEFAULT_BASE)
    if shape is None:
        return str(Path(base).absolute()) if Path(base).exists() else base
    logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    checkpoint = folder / shape
    parameters = write_checkpoint(SHAPES[shape], checkpoint, base=base, seed=seed)
    output.say(f"{shape} with random weights: {parameters:,} parameters; tokenizer of {base}")
    return str(checkpoint)
