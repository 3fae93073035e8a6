"""Models from their names to encoders, and texts to their tokens."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from embedtune.config import ModelConfig, TrainConfig
from embedtune.data.collection import Collection
from embedtune.data.tokens import Texts, TokenTable
from embedtune.kernels.allocator import keep_freed_memory
from embedtune.models.encoder import Encoder
from embedtune.models.load import check_encoder, load_encoder
from embedtune.models.source import named
from embedtune.progress import Reporter

COMMIT_SHOWN = 8
"""Characters of a commit, where it is part of a name."""


def load(model: ModelConfig, reporter: Reporter, *, four_bit: bool = False, master_weights: bool = False) -> Encoder:
    """The encoder, told about; arguments are those of `load_encoder`. The process keeps freed memory from now on.

    Raises:
        ModelError: the model, the device or the precision can't be used.
    """
    keep_freed_memory()
    encoder = load_encoder(model, four_bit=four_bit, master_weights=master_weights)
    execution = "packed, nothing padded" if encoder.packed else "padded"
    precision = f"{encoder.source.precision} ({encoder.precision_reason})"
    reporter.note(f"{model.base} on {encoder.device.type} in {precision}; {execution}")
    if encoder.prompt("query") or encoder.prompt("passage"):
        reporter.note(f"prompts: query {encoder.prompt('query')!r}, passage {encoder.prompt('passage')!r}")
    for note in encoder.notes:
        reporter.warn(note)
    return encoder


def load_base(config: TrainConfig, reporter: Reporter) -> Encoder:
    """The model that will be trained, told about, with its weights held as the method wants them.

    Raises:
        ModelError: the model, the device or the precision can't be used.
    """
    four_bit = config.model.memory == "low"
    return load(config.model, reporter, four_bit=four_bit, master_weights=config.adapter.trains_weights)


def check_loadable(models: Sequence[ModelConfig]) -> dict[str, ModelConfig]:
    """Look each model up and at its files, so that a wrong name is told before any work is done.

    Returns:
        The same models by the names to show, those of the hub with the commit that will be loaded as their revision.
        Where two are commits of one repository, their names tell which.

    Raises:
        ModelError: a model can't be used.
    """
    pinned = list(dict.fromkeys(map(check_encoder, models)))
    bases = [model.base for model in pinned]
    return {
        model.base if bases.count(model.base) == 1 else f"{model.base}@{(model.revision or '')[:COMMIT_SHOWN]}": model
        for model in pinned
    }


def other_models(model: ModelConfig, names: Sequence[str]) -> tuple[ModelConfig, ...]:
    """Models to compare with, each with its own prompts, computed as `model` is; OWNER/NAME@REVISION is one too."""
    own = replace(other_model(model), max_length=model.max_length)
    return tuple(named(own, name) for name in names)


def other_model(model: ModelConfig) -> ModelConfig:
    """How another model is computed beside that one; its name is still that one's."""
    return replace(model, revision=None, memory="auto", max_length=None, query_prompt=None, passage_prompt=None)


def tokenize(encoder: Encoder, collection: Collection, reporter: Reporter | None = None) -> Texts:
    """All queries and passages of the collection, each with its role's prompt.

    Sentences have no role, so they get the model's default prompt, which most models don't have.
    """
    if collection.sentences:
        sentences = encoder.token_table(collection.queries, None)
        _report_truncated(sentences, "sentences", encoder, reporter)
        if reporter is not None and (encoder.prompt("query") or encoder.prompt("passage")):
            reporter.note(
                "the two sentences of a pair play the same part, so neither of these prompts is put before them"
            )
        return Texts(queries=sentences, passages=sentences)
    texts = Texts(
        queries=encoder.token_table(collection.queries, "query"),
        passages=encoder.token_table(collection.passages, "passage"),
    )
    _report_truncated(texts.passages, "passages", encoder, reporter)
    return texts


def _report_truncated(tokens: TokenTable, what: str, encoder: Encoder, reporter: Reporter | None) -> None:
    if tokens.truncated and reporter is not None:
        reporter.warn(
            f"{tokens.truncated:,} of {len(tokens):,} {what} are longer than "
            f"{encoder.max_length} tokens; what lies behind is not read (--max-length)"
        )
