"""How to use the model, as code to copy and what to know beside it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from embedtune.report.card.markdown import code, text
from embedtune.report.card.metadata import hub_id
from embedtune.report.goals import RETRIEVAL, goal

MODEL_ID = "sentence_transformers_model_id"
"""Stands for the model's place on the Hub; Sentence Transformers' own push replaces this word, and so does ours."""
_USAGE = {
    "question": (
        'queries = model.encode_query(["How do I ...?"])',
        'passages = model.encode_document(["To do that, ...", "Another passage"])',
        "scores = model.similarity(queries, passages)  # higher is more alike",
    ),
    "pair": (
        'embeddings = model.encode(["A man plays the flute.", "Somebody makes music.", "It rains."])',
        "scores = model.similarity(embeddings, embeddings)  # higher is more alike",
    ),
}


@dataclass(frozen=True, kw_only=True)
class CardModel:
    """What the card says of the model itself."""

    dimensions: int
    """Numbers in an embedding."""
    max_length: int
    """Tokens read of a text."""
    prompts: Mapping[str, str] = field(default_factory=dict)
    """Text before each query and document, by these names."""
    similarity: str = "cosine"
    """How two embeddings are compared."""
    own_code: bool = False
    """Whether the model needs Python code that comes with it."""


def loading(model: CardModel, options: str = "") -> str:
    """The line that loads it, with further options."""
    options += ", trust_remote_code=True" if model.own_code else ""
    return f'model = SentenceTransformer("{MODEL_ID}"{options})'


def usage(results: Mapping[str, Any], model: CardModel, *, adapter: bool) -> str:
    """Lines of Python from the imports to the scores."""
    lines = ["from sentence_transformers import SentenceTransformer", "", loading(model)]
    if adapter:
        base = hub_id(str(results["base_model"])) or "FOLDER_OF_THE_BASE_MODEL"
        prompts = {role: prompt for role, prompt in model.prompts.items() if prompt}
        options = f", prompts={json.dumps(prompts, ensure_ascii=True)}" if prompts else ""
        options += ", trust_remote_code=True" if model.own_code else ""
        lines = [
            "from peft import PeftModel",
            "from sentence_transformers import SentenceTransformer",
            "",
            f'model = SentenceTransformer("{base}"{options})',
            f"model.max_seq_length = {model.max_length}",
            f'model[0].model = PeftModel.from_pretrained(model[0].model, "{MODEL_ID}")',
        ]
    return "\n".join([*lines, *_USAGE[goal(results).item]])


def usage_notes(results: Mapping[str, Any], model: CardModel, *, adapter: bool) -> list[str]:
    """What else to know when using it, a sentence each."""
    notes = [
        f"Reads up to {model.max_length:,} tokens of a text; what follows is cut off.",
        f"Embeddings are {model.dimensions:,} numbers, compared by {text(model.similarity)} similarity.",
    ]
    roles = {"query": "encode_query", "document": "encode_document"}
    named = [
        f"`{method}` puts {code(model.prompts[role])} before each text"
        for role, method in roles.items()
        if model.prompts.get(role)
    ]
    if named and goal(results) is RETRIEVAL:
        notes.append(f"It was trained with prompts: {', '.join(named)}. Use these methods rather than `encode`.")
    if adapter and "quantization" in results:
        notes.append("It was trained on a base in 4 bits; on the original weights embeddings differ a little.")
    return notes
