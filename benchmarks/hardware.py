"""What the measurements were taken on."""

from __future__ import annotations

import importlib.metadata
import os
import platform
from pathlib import Path
from typing import Any

import psutil
import torch

from embedtune.report.results import environment

FLAGS = ("avx2", "avx512f", "avx512_bf16", "amx_bf16", "amx_tile")
"""CPU features that decide how fast matrices are multiplied."""
OPTIONAL_PACKAGES = ("triton", "bitsandbytes", "unsloth", "unsloth_zoo", "flash-attn", "xformers")
"""What embedtune or a peer uses where it is installed."""


def describe(device: str) -> dict[str, Any]:
    """Versions and hardware; what the system does not tell is left out or empty."""
    cpu = cpu_facts(_read("/proc/cpuinfo"))
    versions = environment(torch.device(device), "")
    versions.pop("precision")
    return {
        **versions,
        **{package: _version(package) for package in OPTIONAL_PACKAGES},
        "cuda": torch.version.cuda,
        "cpu": cpu["model"] or platform.processor(),
        "cpu_flags": cpu["flags"],
        "cores": _cores(),
        "memory_bytes": _memory_bytes(torch.device(device)),
    }


def cpu_facts(cpuinfo: str) -> dict[str, Any]:
    """Model name, and which of `FLAGS` the first core has, from the text of /proc/cpuinfo."""
    fields: dict[str, str] = {}
    for line in cpuinfo.splitlines():
        key, separator, value = line.partition(":")
        if separator:
            fields.setdefault(key.strip(), value.strip())
    present = set(fields.get("flags", "").split())
    return {"model": fields.get("model name", ""), "flags": [flag for flag in FLAGS if flag in present]}


def _version(package: str) -> str | None:
    """None if it is not installed."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _memory_bytes(device: torch.device) -> int:
    """All that the device, or the machine, has."""
    if device.type == "cuda":
        return torch.cuda.get_device_properties(device).total_memory
    return int(psutil.virtual_memory().total)


def _cores() -> int:
    """Cores that this process may use."""
    usable = getattr(os, "sched_getaffinity", None)
    return len(usable(0)) if usable else os.cpu_count() or 1


def _read(path: str) -> str:
    try:
        return Path(path).read_text(encoding="utf-8")
    except OSError:
        return ""
