"""A base model from a hub id or a folder to an `Encoder`."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors import SafetensorError
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import Normalize, Pooling

from embedtune.errors import ModelError
from embedtune.models.encoder import Encoder
from embedtune.models.families import position_offset


def load_encoder(
    model: str,
    *,
    device: torch.device,
    dtype: torch.dtype = torch.float32,
    max_length: int | None = None,
    revision: str | None = None,
    trust_remote_code: bool = False,
) -> Encoder:
    """Load a model for packed execution.

    Args:
        model: hub id, or a folder: a Sentence Transformers model, whose own settings are kept, or a bare checkpoint,
            which gets mean pooling and normalisation.
        device: where it goes.
        dtype: of the backbone's weights; pooling and what follows stay fp32.
        max_length: tokens read of a text, if not the model's own setting.
        revision: branch, tag or commit of a hub model.
        trust_remote_code: run code that comes with the model.

    Raises:
        ModelError: there is no such model, it can't be reached, or it isn't a text encoder.
    """
    sentence_transformer, notes = load_sentence_transformer(
        model, device=device, revision=revision, trust_remote_code=trust_remote_code
    )
    set_max_length(sentence_transformer, max_length)
    sentence_transformer[0].to(dtype)
    for parameter in sentence_transformer.parameters():
        parameter.requires_grad_(False)
    return Encoder(sentence_transformer, notes=notes)


def load_sentence_transformer(
    model: str, *, device: torch.device, revision: str | None = None, trust_remote_code: bool = False
) -> tuple[SentenceTransformer, list[str]]:
    """A Sentence Transformers model in its checkpoint's dtype, with its own settings as far as it has any.

    Returns:
        The model, and what was chosen in place of settings that it lacks or that can't be kept, a sentence each.

    Raises:
        ModelError: there is no such model, it can't be reached, or it isn't a text encoder.
    """
    folder = Path(model).expanduser()
    if _looks_like_a_folder(model) and not (folder / "config.json").is_file() and not _is_st_folder(folder):
        found = "it does not exist" if not folder.exists() else "it holds no config.json"
        raise ModelError(
            f"'{model}' is not a model folder: {found}.\n"
            "Expected a Hugging Face or Sentence Transformers folder, or a hub id like "
            "sentence-transformers/all-MiniLM-L12-v2."
        )
    try:
        loaded = SentenceTransformer(
            str(folder) if folder.exists() else model,
            device=str(device),
            revision=revision,
            trust_remote_code=trust_remote_code,
        )
    except (OSError, ValueError, KeyError, RuntimeError, ImportError, SafetensorError) as error:
        raise _load_error(model, error) from error
    _check_is_text_encoder(model, loaded)
    _check_pools_prompt(model, loaded)
    return loaded, _complete(loaded)


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


def _looks_like_a_folder(model: str) -> bool:
    return Path(model).expanduser().exists() or model.startswith((".", "/", "~")) or model.count("/") > 1


def _is_st_folder(folder: Path) -> bool:
    return (folder / "modules.json").is_file()


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


def _check_pools_prompt(model: str, loaded: SentenceTransformer) -> None:
    leaves_out = any(isinstance(module, Pooling) and not module.include_prompt for module in loaded)
    if leaves_out and any(role_prompts(loaded).values()):
        raise ModelError(
            f"'{model}' leaves its prompt's tokens out of pooling, as INSTRUCTOR models do; that is not supported.\n"
            "Expected a model whose pooling includes the prompt, or one without prompts."
        )


def _load_error(model: str, error: Exception) -> ModelError:
    reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
    if isinstance(error, OSError) and not Path(model).exists():
        return ModelError(
            f"'{model}' could not be loaded from the hub: {reason}\n"
            "Check the id and the network, or give a folder that holds the model:  --base FOLDER"
        )
    return ModelError(
        f"'{model}' could not be loaded as a text encoder: {reason}\n"
        "Expected an encoder such as BERT, RoBERTa, ModernBERT or Qwen3-Embedding."
    )
