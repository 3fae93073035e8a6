"""Which runners can run on this machine; of each other one, why it can't."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.util import find_spec

import torch
from transformers.utils.import_utils import is_flash_attn_2_available

from benchmarks.jobs import OURS, PEERS, AdapterMethod, DeviceName, Peer
from embedtune.errors import ConfigError


def who_can_run(
    named: Sequence[str], otherwise: Sequence[str], device: DeviceName, *, method: AdapterMethod = "lora"
) -> tuple[list[str], dict[str, str]]:
    """The runners that can run here, in their order and without repetitions, and why the others can't.

    Args:
        named: who was asked for.
        otherwise: who is meant if nobody was; a peer that would only crawl on this machine is left out then.
        device: where to compute.
        method: of training.

    Raises:
        ConfigError: none can.
    """
    reasons = {name: why_not(name, device, method=method) for name in named or otherwise}
    if not named:
        reasons = {name: reason or _why_rather_not(name, device) for name, reason in reasons.items()}
    able = [name for name, reason in reasons.items() if reason is None]
    skipped = {name: reason for name, reason in reasons.items() if reason is not None}
    if not able:
        reasons_given = "\n".join(f"{name}: {reason}" for name, reason in skipped.items())
        raise ConfigError(f"--runners: none of them can run here.\n{reasons_given}")
    return able, skipped


def why_not(runner: str, device: DeviceName, *, method: AdapterMethod = "lora") -> str | None:
    """Why a runner can't run here; None if it can, as far as that is known before it tries."""
    if runner in OURS:
        return "it is about --method qlora" if OURS[runner].low_memory and method != "qlora" else None
    peer = PEERS[runner]
    if peer.flash:
        return _without_flash(device)
    return _without_unsloth(peer, device) if peer.unsloth else None


def _why_rather_not(runner: str, device: DeviceName) -> str | None:
    if device == "cpu" and runner in PEERS and PEERS[runner].precision == "bf16" and not _multiplies_bf16():
        return "torch has no fast bf16 on this CPU, so it would take many times as long; name it to have it anyway"
    return None


def _multiplies_bf16() -> bool:
    """Whether torch's CPU library does bf16 by more than emulation (it wants AVX512)."""
    available = torch.backends.mkldnn.is_available()  # type: ignore[no-untyped-call]
    return bool(available and torch.ops.mkldnn._is_mkldnn_bf16_supported())


def _without_flash(device: DeviceName) -> str | None:
    if device != "cuda":
        return "FlashAttention needs CUDA, and the device is the CPU"
    return None if is_flash_attn_2_available() else "flash_attn (FlashAttention 2) is not installed"


def _without_unsloth(peer: Peer, device: DeviceName) -> str | None:
    if device != "cuda":
        return "unsloth's FastSentenceTransformer needs CUDA, and the device is the CPU"
    if find_spec("unsloth") is None:
        return "unsloth is not installed"
    if peer.unpadding and not any(map(find_spec, ("flash_attn", "xformers"))):
        return "unsloth unpads with flash_attn or xformers, and neither is installed"
    return None
