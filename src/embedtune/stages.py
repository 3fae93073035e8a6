"""Stages that a training run shares with measuring and encoding: load, tokenise, evaluate."""

from __future__ import annotations

from dataclasses import dataclass

from embedtune.config import ModelConfig
from embedtune.data.collection import Collection
from embedtune.data.tokens import TokenTable
from embedtune.evaluation.run import Evaluation, RetrievalTask, evaluate_embeddings
from embedtune.models.encoder import Encoder
from embedtune.models.hardware import PrecisionName, choose_device, choose_precision, torch_dtype
from embedtune.models.load import load_encoder
from embedtune.progress import Reporter


@dataclass(frozen=True)
class Texts:
    """Every text of a collection as token ids."""

    queries: TokenTable
    passages: TokenTable


def load(model: ModelConfig, reporter: Reporter) -> tuple[Encoder, PrecisionName]:
    """The encoder, and the precision that it computes in.

    Raises:
        ModelError: the model, the device or the precision can't be used.
    """
    device = choose_device(model.device)
    precision, reason = choose_precision(model.precision, device)
    encoder = load_encoder(
        model.base,
        device=device,
        dtype=torch_dtype(precision),
        max_length=model.max_length,
        revision=model.revision,
        trust_remote_code=model.trust_remote_code,
    )
    execution = "packed, nothing padded" if encoder.packed else "padded"
    reporter.note(f"{model.base} on {device.type} in {precision} ({reason}); {execution}")
    if encoder.prompt("query") or encoder.prompt("passage"):
        reporter.note(f"prompts: query {encoder.prompt('query')!r}, passage {encoder.prompt('passage')!r}")
    for note in encoder.notes:
        reporter.warn(note)
    return encoder, precision


def tokenize(encoder: Encoder, collection: Collection, reporter: Reporter) -> Texts:
    """All queries and passages of the collection, each with its role's prompt."""
    texts = Texts(
        queries=encoder.tokenize(collection.queries, "query"),
        passages=encoder.tokenize(collection.passages, "passage"),
    )
    if texts.passages.truncated:
        reporter.warn(
            f"{texts.passages.truncated:,} of {len(texts.passages):,} passages are longer than "
            f"{encoder.max_length} tokens; what lies behind is not read (--max-length)"
        )
    return texts


def evaluate(encoder: Encoder, task: RetrievalTask, texts: Texts, reporter: Reporter, label: str) -> Evaluation:
    """Embed the task's queries and corpus, search, and score."""
    with reporter.counting(label, len(task.query_ids) + len(task.passage_ids)) as advance:
        queries_QE = encoder.encode(texts.queries, task.query_ids, on_progress=advance)
        corpus_DE = encoder.encode(texts.passages, task.passage_ids, on_progress=advance)
    return evaluate_embeddings(task, queries_QE, corpus_DE)
