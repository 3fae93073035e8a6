"""One cell of the table of methods: load, make trainable and train as `embedtune train` does, and say what it took."""

from __future__ import annotations

from benchmarks.jobs import CHECKPOINTING, MethodJob, row_of
from benchmarks.measure import StepClock, held_bytes, peak_bytes, reset_peak
from benchmarks.ours import load_trainable
from benchmarks.records import MethodMeasurement
from benchmarks.steps import given_objective, run_steps
from embedtune.config import AdapterConfig, LossConfig, ModelConfig, TrainingConfig
from embedtune.kernels.allocator import keep_freed_memory
from embedtune.models.adapters import trainable_parameters
from embedtune.models.encoder import Encoder
from embedtune.models.hardware import choose_device
from embedtune.models.recompute import recompute_layers


def time_method(cell: str, job: MethodJob) -> MethodMeasurement:
    """Train on the batches; memory is counted from before the model is loaded."""
    keep_freed_memory()
    device = choose_device(job.device)
    process = held_bytes(device)
    encoder = _trainable(cell, job)
    loaded, load_peak = held_bytes(device), peak_bytes(device)
    config = TrainingConfig(
        batch_size=job.batch_size, optimizer=job.optimizer, schedule="constant", warmup_fraction=0.0
    )
    objective = given_objective(encoder, job.batches, scale=LossConfig().scale)
    reset_peak(device)
    clock = StepClock(device, warmup=job.warmup)
    progress = run_steps(encoder, objective, config, clock, method=row_of(cell).method, seed=job.seed)
    return MethodMeasurement(
        cell=cell,
        precision=encoder.source.precision,
        step_seconds=clock.step_seconds(),
        batch_size=job.batch_size,
        tokens=progress.tokens,
        trainable_parameters=trainable_parameters(encoder)[0],
        process_bytes=process,
        loaded_bytes=loaded,
        load_peak_bytes=load_peak,
        peak_bytes=peak_bytes(device),
        losses=progress.losses,
        notes=encoder.notes,
    )


def _trainable(cell: str, job: MethodJob) -> Encoder:
    row = row_of(cell)
    model = ModelConfig(
        base=job.base,
        device=job.device,
        precision=job.precision,
        max_length=job.max_length,
        memory="low" if row.low_memory else "auto",
    )
    encoder = load_trainable(model, AdapterConfig(method=row.method), seed=job.seed)
    if cell.endswith(CHECKPOINTING):
        recompute_layers(encoder.backbone)
    return encoder
