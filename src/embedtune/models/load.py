"""A base model from a hub id or a folder to an `Encoder`."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import TypeVar

import torch
from safetensors import SafetensorError
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import Normalize, Pooling

from embedtune.config import ModelConfig
from embedtune.errors import ModelError
from embedtune.models.encoder import Encoder
from embedtune.models.families import position_offset
from embedtune.models.hardware import choose_device, choose_precision, torch_dtype

Model = TypeVar("Model", bound=SentenceTransformer)


def load_encoder(config: ModelConfig, *, four_bit: bool = False, master_weights: bool = False) -> Encoder:
    """Load a model for packed execution, all its parameters frozen.

    Args:
        config: which model, on which device, in which arithmetic. A Sentence Transformers model keeps its own settings;
            a bare checkpoint gets mean pooling and normalisation.
        four_bit: hold the linear layers of the backbone in NF4; needs the extra `quant`.
        master_weights: hold the backbone's weights in fp32, whatever it computes in, because they will be trained.

    Raises:
        ModelError: there is no such model, it can't be reached, it isn't a text encoder, or the device or the precision
            can't be used.
    """
    device = choose_device(config.device)
    precision, reason = choose_precision(config.precision, device)
    # In 4 bits a model may fit a device that it does not fit otherwise.
    encoder, notes = load_sentence_transformer(config, device=torch.device("cpu") if four_bit else device, kind=Encoder)
    encoder.source = replace(config, precision=precision, max_length=encoder.max_length)
    encoder.notes, encoder.precision_reason = notes, reason
    dtype = torch_dtype(precision)
    if master_weights and dtype != torch.float32:
        encoder.autocast_dtype, dtype = dtype, torch.float32
    encoder.requires_grad_(False)
    if four_bit:
        from embedtune.models.quantize import quantize

        encoder.backbone.to(dtype)  # type: ignore[arg-type]
        encoder.notes.append(quantize(encoder, device=device, low_memory=config.memory == "low"))
    encoder.to(device)
    encoder.backbone.to(dtype)  # type: ignore[arg-type]  # transformers' wrapper hides the overloads
    for module in list(encoder)[1:]:
        module.float()
    encoder.pack()
    return encoder


def load_sentence_transformer(
    config: ModelConfig, *, device: torch.device, kind: type[Model]
) -> tuple[Model, list[str]]:
    """A Sentence Transformers model in its checkpoint's dtype, with its own settings as far as `config` leaves them.

    Returns:
        The model, and what was chosen in place of settings that it lacks or that can't be kept, a sentence each.

    Raises:
        ModelError: there is no such model, it can't be reached, or it isn't a text encoder.
    """
    model, folder = config.base, Path(config.base).expanduser()
    if _looks_like_a_folder(model):
        _check_holds_a_model(model, folder)
    try:
        loaded = kind(
            str(folder) if folder.exists() else model,
            device=str(device),
            revision=config.revision,
            trust_remote_code=config.trust_remote_code,
        )
    except torch.OutOfMemoryError:
        raise  # a RuntimeError, but nothing is wrong with the model
    except (OSError, ValueError, KeyError, RuntimeError, ImportError, SafetensorError) as error:
        raise _load_error(model, error) from error
    _check_is_text_encoder(model, loaded)
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


def _looks_like_a_folder(model: str) -> bool:
    return Path(model).expanduser().exists() or model.startswith((".", "/", "~")) or model.count("/") > 1


def _check_holds_a_model(model: str, folder: Path) -> None:
    for part in (folder, *_module_folders(folder)):
        if (part / "adapter_config.json").is_file() and not (part / "config.json").is_file():
            raise _is_an_adapter(part)
    if not (folder / "config.json").is_file() and not (folder / "modules.json").is_file():
        found = "it does not exist" if not folder.exists() else "it holds no config.json"
        raise ModelError(
            f"'{model}' is not a model folder: {found}.\n"
            "Expected a Hugging Face or Sentence Transformers folder, or a hub id like "
            "sentence-transformers/all-MiniLM-L12-v2."
        )


def _is_an_adapter(folder: Path) -> ModelError:
    """Sentence Transformers loads it with the model that it belongs to; but a second adapter can't be put on the first,
    and weights trained beneath it would not be saved.
    """
    base = _base_of_adapter(folder)
    explained = "" if base else ", BASE being the model it belongs to"
    return ModelError(
        f"'{folder}' holds an adapter, not a model.\n"
        f"Type:  --base {base or 'BASE'} --start-adapter {folder}   to go on training it{explained}."
    )


def _module_folders(folder: Path) -> list[Path]:
    """Those that a Sentence Transformers folder lists; what is wrong with its list is said when it is loaded."""
    try:
        modules = json.loads((folder / "modules.json").read_text(encoding="utf-8"))
        return [folder / module["path"] for module in modules]
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return []


def _base_of_adapter(folder: Path) -> str | None:
    try:
        config = json.loads((folder / "adapter_config.json").read_text(encoding="utf-8"))
        return config["base_model_name_or_path"] or None
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return None


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
