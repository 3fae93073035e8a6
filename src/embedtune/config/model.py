"""Which model a run starts from, and how it is computed."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from embedtune.checks import require, require_choice, require_usable


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """Which model to start from, and how it is computed."""

    base: str = "sentence-transformers/all-MiniLM-L12-v2"
    """Hub id or folder of the encoder to fine-tune."""
    revision: str | None = None
    """Branch, tag or commit of a hub model."""
    max_length: int | None = None
    """Tokens read of a text; the model's own setting if not given."""
    precision: Literal["auto", "fp32", "bf16", "fp16"] = "auto"
    """Arithmetic of the encoder; auto takes bf16 where the hardware is faster with it."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where to compute; auto takes CUDA where there is any."""
    memory: Literal["auto", "low"] = "auto"
    """With 4-bit weights, low keeps no dequantised copy of them, and the base model too is measured in 4 bits."""
    query_prompt: str | None = None
    """Text before every query, in training, evaluation and encoding; the model's own if not given."""
    passage_prompt: str | None = None
    """Text before every passage, likewise."""
    trust_remote_code: bool = False
    """Run Python code that comes with the models named, those of --against too."""

    def __post_init__(self) -> None:
        require_usable(self)
        require_choice(self, "precision")
        require_choice(self, "device")
        require_choice(self, "memory")
        if self.max_length is not None:
            require(self.max_length >= 8, "max-length", self.max_length, "8 or more tokens")
