"""Which device and precision are chosen, and the reason that is given."""

from __future__ import annotations

import pytest
import torch

import embedtune.models.hardware as hardware
from embedtune.errors import ModelError
from embedtune.models.hardware import choose_device, choose_precision, peak_memory_bytes, torch_dtype

CPU = torch.device("cpu")


def test_device(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert choose_device("auto") == choose_device("cpu") == CPU
    with pytest.raises(ModelError, match=r"sees no CUDA device\.\nType:  --device cpu"):
        choose_device("cuda")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert choose_device("auto") == choose_device("cuda") == torch.device("cuda")
    assert choose_device("cpu") == CPU


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_precision_as_asked(precision: hardware.PrecisionName) -> None:
    assert choose_precision(precision, CPU) == (precision, "as asked")


def test_fp16_on_a_cpu_is_refused() -> None:
    with pytest.raises(ModelError, match="--precision bf16 or --precision fp32"):
        choose_precision("fp16", CPU)
    assert choose_precision("fp16", torch.device("cuda")) == ("fp16", "as asked")


@pytest.mark.parametrize(
    ("amx", "avx512_bf16", "speedup", "expected", "reason"),
    [
        (True, True, 0.1, "bf16", "AMX"),
        (False, True, 1.9, "bf16", "1.9x as fast"),
        (False, True, 0.5, "fp32", "0.5x as fast"),
        (False, False, 9.0, "fp32", "no bf16 instructions"),
    ],
)
def test_auto_on_a_cpu(
    amx: bool, avx512_bf16: bool, speedup: float, expected: str, reason: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: amx)
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: avx512_bf16)
    monkeypatch.setattr(hardware, "bf16_speedup", lambda: speedup)
    precision, why = choose_precision("auto", CPU)
    assert precision == expected
    assert reason in why


@pytest.mark.parametrize(("bf16", "expected"), [(True, "bf16"), (False, "fp16")])
def test_auto_on_cuda(bf16: bool, expected: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: bf16)
    precision, why = choose_precision("auto", torch.device("cuda"))
    assert precision == expected
    assert "bf16" in why


def test_auto_on_this_machine_computes() -> None:
    precision, why = choose_precision("auto", CPU)
    assert why
    assert (torch.ones(2, 2, dtype=torch_dtype(precision)) @ torch.ones(2, 2, dtype=torch_dtype(precision))).sum() == 8


def test_the_speedup_is_a_ratio_of_two_measurements() -> None:
    assert 0.01 < hardware.bf16_speedup(rounds=2) < 100


def test_peak_memory_is_in_bytes() -> None:
    """A Python process with torch in it holds some hundred megabytes."""
    assert 10**8 < peak_memory_bytes(CPU) < 10**11
