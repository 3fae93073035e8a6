"""The peers' models, loaded and adapted as their documentation shows it: Sentence Transformers + PEFT, and unsloth."""

from __future__ import annotations

import importlib
from typing import Any

import torch
from peft import LoraConfig, TaskType, prepare_model_for_kbit_training
from sentence_transformers import SentenceTransformer
from torch import nn
from transformers import BitsAndBytesConfig, PreTrainedModel

from benchmarks.jobs import PEERS, EncodeJob, Peer, TrainJob
from embedtune.errors import RunError
from embedtune.models.families import encoder_linears

_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


def load_adapted(runner: str, job: TrainJob) -> SentenceTransformer:
    """The base with a new adapter on the layers that embedtune trains."""
    peer = PEERS[runner]
    torch.manual_seed(job.seed)
    model = _unsloth(peer, job) if peer.unsloth else _sentence_transformer(peer, job)
    if not peer.dropout:
        switch_dropout_off(model)
    return model


def load_for_encoding(runner: str, job: EncodeJob) -> SentenceTransformer:
    """The base, its weights in the precision that it computes in."""
    peer = PEERS[runner]
    return _load(job, dtype=_DTYPES[peer.precision], **_attention(peer))


def switch_dropout_off(model: nn.Module) -> None:
    """Layers, and the probabilities that newer architectures hand to their attention functions."""
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
        if "attention_dropout" in vars(module) and isinstance(vars(module)["attention_dropout"], float):
            vars(module)["attention_dropout"] = 0.0


def _sentence_transformer(peer: Peer, job: TrainJob) -> SentenceTransformer:
    """Weights in fp32, where `bf16=True` computes in bf16 by autocast; FlashAttention alone wants them in bf16."""
    options: dict[str, Any] = {"dtype": torch.bfloat16 if peer.flash else torch.float32, **_attention(peer)}
    if job.method == "qlora":
        options["quantization_config"] = BitsAndBytesConfig(  # type: ignore[no-untyped-call]
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_use_double_quant=True,
            bnb_4bit_compute_dtype=_DTYPES[peer.precision],
        )
    model = _load(job, **options)
    backbone = _backbone(model)
    targets = encoder_linears(backbone)
    if job.method == "qlora":
        prepare_model_for_kbit_training(backbone, use_gradient_checkpointing=False)  # type: ignore[no-untyped-call]
    model.add_adapter(
        LoraConfig(
            r=job.rank,
            lora_alpha=job.alpha,  # type: ignore[arg-type]  # PEFT divides it: any number will do
            lora_dropout=0.0,
            target_modules=targets,
            task_type=TaskType.FEATURE_EXTRACTION,
        )
    )
    return model


def _unsloth(peer: Peer, job: TrainJob) -> SentenceTransformer:
    """`FastSentenceTransformer` as its documentation has it: base weights in bf16, or in 4 bits.

    Raises:
        RunError: it was asked to unpad and does not.
    """
    fast = importlib.import_module("unsloth").FastSentenceTransformer
    four_bit = job.method == "qlora"
    unpadding = {"use_unpadding": "auto"} if peer.unpadding else {}
    model: SentenceTransformer = fast.from_pretrained(
        model_name=job.base,
        max_seq_length=job.max_length,
        dtype=torch.bfloat16,
        load_in_4bit=four_bit,
        load_in_16bit=not four_bit,
        **unpadding,
    )
    if peer.unpadding and not vars(model).get("_unsloth_unpadding_installed", False):
        raise RunError(f"unsloth does not unpad this model ({type(_backbone(model)).__name__})")
    model.max_seq_length = job.max_length
    adapted: SentenceTransformer = fast.get_peft_model(
        model,
        r=job.rank,
        target_modules=encoder_linears(_backbone(model)),
        lora_alpha=job.alpha,
        lora_dropout=0,
        bias="none",
        use_gradient_checkpointing=False,
        random_state=job.seed,
        task_type="FEATURE_EXTRACTION",
    )
    return adapted


def _load(job: TrainJob | EncodeJob, **options: Any) -> SentenceTransformer:
    model = SentenceTransformer(job.base, device=job.device, model_kwargs=options)
    model.max_seq_length = job.max_length
    return model


def _attention(peer: Peer) -> dict[str, str]:
    return {"attn_implementation": "flash_attention_2"} if peer.flash else {}


def _backbone(model: SentenceTransformer) -> PreTrainedModel:
    backbone = model.transformers_model
    assert backbone is not None
    return backbone
