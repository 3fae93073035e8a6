"""A plain Sentence Transformers model from a hub id or a folder: its settings looked at, and completed."""

from __future__ import annotations

import re
from typing import TypeVar

import torch
from safetensors import SafetensorError
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import Normalize, Pooling

from embedtune.config import ModelConfig
from embedtune.errors import ModelError
from embedtune.models.families import position_offset
from embedtune.models.source import find_folder, looks_like_a_folder, repository

Model = TypeVar("Model", bound=SentenceTransformer)


def load_sentence_transformer(
    config: ModelConfig, *, device: torch.device, kind: type[Model]
) -> tuple[Model, list[str]]:
    """A Sentence Transformers model in its checkpoint's dtype, with its own settings as far as `config` leaves them.

    On the device "meta" the backbone's weights are not read, only their names and shapes.

    Returns:
        The model, and what was chosen in place of settings that it lacks or that can't be kept, a sentence each.

    Raises:
        ModelError: there is no such model, it can't be reached, or it isn't a text encoder.
    """
    model, folder = config.base, find_folder(config)
    unread = device.type == "meta"
    try:
        loaded = kind(
            str(folder),
            device=None if unread else str(device),
            trust_remote_code=config.trust_remote_code,
            # Otherwise Sentence Transformers asks the Hub whether it knows a model of the folder's name.
            # But code that comes with a model may be in another repository.
            local_files_only=not config.trust_remote_code,
            model_kwargs={"use_safetensors": True, **({"device_map": "meta"} if unread else {})},
        )
    except torch.OutOfMemoryError:
        raise  # a RuntimeError, but nothing is wrong with the model
    except (OSError, ValueError, KeyError, RuntimeError, ImportError, SafetensorError) as error:
        raise _load_error(model, error) from error
    if not looks_like_a_folder(model):  # which the card that Sentence Transformers writes can't tell from the folder
        loaded.model_card_data.base_model = repository(model)
        loaded.model_card_data.base_model_revision = folder.name
    _check_is_text_encoder(model, loaded)
    _check_template_names(model, loaded)
    notes = _complete(loaded)
    for role, prompt in (("query", config.query_prompt), ("document", config.passage_prompt)):
        if prompt is not None:
            loaded.prompts[role] = prompt
    _check_pools_prompt(model, loaded)
    set_max_length(loaded, config.max_length)
    return loaded, notes


def _complete(loaded: SentenceTransformer) -> list[str]:
    """Fill in what a bare checkpoint lacks and settle each role's prompt; returns what was done."""
    notes = []
    loaded.prompts = {**(loaded.prompts or {}), **role_prompts(loaded)}
    if not loaded.module_kwargs:
        notes.append(f"a bare checkpoint: {loaded[1].pooling_mode} pooling and normalisation were added")
        loaded.append(Normalize())
    if loaded.similarity_fn_name != "cosine":
        notes.append(f"the base compares by {loaded.similarity_fn_name}; here cosine similarity is used and saved")
        loaded.similarity_fn_name = "cosine"
    return notes


def role_prompts(loaded: SentenceTransformer) -> dict[str, str]:
    """The prompt of a query and of a document, under the names that Sentence Transformers' `encode_query` and
    `encode_document` look for first.

    Folders name the second one document, passage or corpus, or have a default prompt for both.
    """
    prompts = loaded.prompts or {}
    default = prompts.get(loaded.default_prompt_name or "") or ""
    names = {"query": ("query",), "document": ("document", "passage", "corpus")}
    return {role: next((prompts[n] for n in names[role] if prompts.get(n)), default) or "" for role in names}


def set_max_length(sentence_transformer: SentenceTransformer, max_length: int | None) -> None:
    """Set how many tokens of a text are read; None keeps the model's own setting.

    Raises:
        ModelError: more than the model has positions.
    """
    limit = getattr(sentence_transformer.config, "max_position_embeddings", None)
    if limit is not None:
        limit -= position_offset(sentence_transformer[0])
    if max_length is not None and limit is not None and max_length > limit:
        raise ModelError(
            f"--max-length {max_length} is more than the model's {limit} positions.\n"
            f"Type:  --max-length {limit} or less."
        )
    if max_length is not None:
        sentence_transformer.max_seq_length = max_length


def _check_is_text_encoder(model: str, loaded: SentenceTransformer) -> None:
    backbone = getattr(loaded[0], "model", None)
    if backbone is None or getattr(backbone.config, "is_encoder_decoder", False) or loaded.tokenizer is None:
        kind = type(backbone or loaded[0]).__name__
        raise ModelError(
            f"'{model}' is not a text encoder: it loads as {kind}.\n"
            "Expected an encoder such as BERT, RoBERTa, ModernBERT or Qwen3-Embedding."
        )


def _check_template_names(model: str, loaded: SentenceTransformer) -> None:
    """They become names of files when the model is saved, hours later."""
    templates = getattr(loaded.tokenizer, "chat_template", None)
    for name in templates if isinstance(templates, dict) else ():
        if not re.fullmatch(r"\w[\w.\-]*", name):
            raise ModelError(
                f"'{model}': its tokenizer has a chat template named {name!r}; expected letters, digits, '-', '_' and "
                "'.', as a file of that name is written with the model.\nRemove it from tokenizer_config.json."
            )


def _check_pools_prompt(model: str, loaded: SentenceTransformer) -> None:
    leaves_out = any(isinstance(module, Pooling) and not module.include_prompt for module in loaded)
    if leaves_out and any(role_prompts(loaded).values()):
        raise ModelError(
            f"'{model}' leaves its prompt's tokens out of pooling, as INSTRUCTOR models do; that is not supported.\n"
            "Expected a model whose pooling includes the prompt, or one without prompts."
        )


def _load_error(model: str, error: Exception) -> ModelError:
    reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
    if "trust_remote_code" in str(error):
        return ModelError(
            f"'{model}' comes with Python code of its own, which was not run.\n"
            "If you have read it and trust it, type:  --trust-remote-code"
        )
    return ModelError(
        f"'{model}' could not be loaded as a text encoder: {reason}\n"
        "Expected an encoder such as BERT, RoBERTa, ModernBERT or Qwen3-Embedding."
    )
