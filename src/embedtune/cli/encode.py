"""`embedtune encode MODEL INPUT --out vectors.parquet|.npy`"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro

from embedtune.cli.console import Console
from embedtune.cli.network import use_cache_without_network
from embedtune.cli.options import parse


@dataclass(frozen=True, kw_only=True)
class EncodeOptions:
    """Embed every text of a file."""

    model: Annotated[str, tyro.conf.Positional]
    """Hub id or folder of a Sentence Transformers model or a bare checkpoint."""
    input: Annotated[str, tyro.conf.Positional]
    """Texts: .txt (one a line), .jsonl, .json, .csv, .tsv or .parquet, each also .gz. All but .json are streamed."""
    out: Path
    """File to write: .npy (a float32 matrix) or .parquet (columns text and embedding)."""
    column: str | None = None
    """Column of the texts, if its name is not recognised."""
    role: Literal["query", "passage"] = "passage"
    """Which of the model's prompts to put before each text, if it has any."""
    revision: str | None = None
    """Branch, tag or commit of a hub model."""
    max_length: int | None = None
    """Tokens read of a text; the model's own setting if not given."""
    precision: Literal["auto", "fp32", "bf16", "fp16"] = "auto"
    """Arithmetic of the encoder."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where to compute."""
    trust_remote_code: bool = False
    """Run Python code that comes with the model."""


def main(arguments: Sequence[str]) -> None:
    """Embed, write the file, say how many."""
    options = parse(EncodeOptions, arguments, command="encode")
    use_cache_without_network(options.model)
    console = Console()
    console.note("loading libraries")
    from embedtune.config import ModelConfig
    from embedtune.encoding import encode_file

    model = ModelConfig(
        base=options.model,
        revision=options.revision,
        max_length=options.max_length,
        precision=options.precision,
        device=options.device,
        trust_remote_code=options.trust_remote_code,
    )
    count, size = encode_file(
        model, options.input, options.out, column=options.column, role=options.role, reporter=console
    )
    console.note(f"{count:,} embeddings of size {size}: {options.out}")
