"""What counts as running out of memory, and what a computation is found to take."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch.utils.checkpoint import checkpoint

import embedtune.models.memory
from embedtune.models.memory import free_bytes, out_of_memory, peak_bytes


def test_torch_without_memory_on_the_cpu_is_out_of_memory() -> None:
    with pytest.raises(RuntimeError) as raised:
        torch.empty(2**48, dtype=torch.uint8)
    assert out_of_memory(raised.value)


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"), True),
        (MemoryError(), True),
        (RuntimeError("DefaultCPUAllocator: not enough memory: you tried to allocate 8 bytes."), True),
        (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"), True),
        (RuntimeError("mat1 and mat2 shapes cannot be multiplied"), False),
    ],
)
def test_what_counts_as_out_of_memory(error: Exception, expected: bool) -> None:
    assert out_of_memory(error) is expected
    wrapped = ValueError("the layer failed")
    wrapped.__cause__ = error
    assert out_of_memory(wrapped) is expected


def layers(count: int, size: int) -> list[torch.nn.Linear]:
    return [torch.nn.Linear(size, size, bias=False) for _ in range(count)]


def difference(width: int, *, recompute: bool) -> float:
    """Activations that a row more takes at the peak, in units of `width` fp32 values."""
    stack = layers(8, width)

    def run(rows: int) -> None:
        x = torch.ones(rows, width, requires_grad=True)
        for layer in stack:
            x = checkpoint(torch.tanh, layer(x), use_reentrant=False) if recompute else torch.tanh(layer(x))
        x.sum().backward()  # type: ignore[no-untyped-call]
        for layer in stack:
            layer.weight.grad = None

    return (peak_bytes(lambda: run(300)) - peak_bytes(lambda: run(100))) / (200 * 4 * width)


def test_the_peak_is_that_of_the_activations_kept_and_the_gradients_that_come_up() -> None:
    """The output of each layer's product is needed by nobody; that of each tanh is, and two gradients at a time."""
    assert difference(64, recompute=False) == pytest.approx(8 + 2, abs=1.5)


def test_what_is_computed_again_in_the_backward_pass_counts() -> None:
    assert difference(64, recompute=True) > 8 + 2


def test_free_memory_is_no_more_than_a_container_allows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    machine = free_bytes(torch.device("cpu"))
    assert 2**20 < machine < 2**50
    (tmp_path / "memory.max").write_text("30000\n")
    (tmp_path / "memory.current").write_text("12000\n")
    (tmp_path / "memory.stat").write_text("anon 5000\ninactive_file 2000\n")
    own = (str(tmp_path), "memory.max", "memory.current", "inactive_file")
    monkeypatch.setattr(embedtune.models.memory, "_CGROUP_FILES", {"": own, "memory": own})
    if not Path("/proc/self/cgroup").exists():
        pytest.skip("there are no control groups")
    assert free_bytes(torch.device("cpu")) == 20_000
    (tmp_path / "memory.max").write_text("max\n")
    assert free_bytes(torch.device("cpu")) > 2**20
