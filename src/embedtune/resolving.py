"""A config with nothing left open: what was derived filled in, paths in full, commits of what came from the Hub."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path
from typing import Any

from embedtune.config_file import Config
from embedtune.data.hub import is_hub_id, pin
from embedtune.losses.build import ITSELF
from embedtune.models.encoder import Encoder
from embedtune.paths import expanded
from embedtune.training.plan import Plan


def resolve(
    config: Config, plan: Plan, encoder: Encoder, *, others: tuple[str, ...] = ()
) -> tuple[Config, dict[str, str | None]]:
    """The config with every derived value filled in; given to `train` again, from any folder, it repeats the run.

    Args:
        config: as it was given.
        plan: what it comes to on this data.
        encoder: the base model, as loaded.
        others: what names the models of `against` again.

    Returns:
        The config, and the commits of data sets of the Hub.
    """
    training = replace(
        config.training,
        batch_size=plan.batch_size,
        eval_steps=plan.eval_steps,
        lr=plan.lr,
        epochs=plan.epochs,
        mined_epochs=plan.mined_epochs,
        trainings=plan.trainings,
        mined_lr=plan.phases[-1].lr if plan.mined_epochs else config.training.mined_lr,
        mined_batch_size=plan.phases[-1].batch_size if plan.mined_epochs else config.training.mined_batch_size,
        mined_batches=config.training.mined_in,
        averaging=plan.averaging,
        schedule=plan.schedule,
    )
    sources = {name: _absolute(getattr(config.data, name)) for name in ("train", "test", "dev", "corpus", "labels")}
    commits: dict[str, str | None] = {}
    for name, source in sources.items():
        if source and name != "labels" and not Path(source).exists() and is_hub_id(source):
            sources[name], commits[name] = pin(source)
    resolved = replace(
        config,
        data=replace(config.data, **sources),
        training=training,
        model=replace(encoder.source, base=_absolute(config.model.base)),
        loss=replace(
            config.loss,
            teacher=_absolute(config.loss.teacher),
            guide=config.loss.guide if config.loss.guide == ITSELF else _absolute(config.loss.guide),
        ),
        adapter=replace(config.adapter, start_adapter=_absolute(config.adapter.start_adapter)),
        evaluation=replace(
            config.evaluation,
            against=others,
            forgetting=tuple(map(_absolute, config.evaluation.forgetting)),
        ),
        output=replace(config.output, out=config.output.out.absolute(), resume=False),
    )
    return resolved, commits


def _absolute(source: str | None) -> Any:
    """A file or folder by its full path; a hub id, or nothing, as it is."""
    path = expanded(source or "")
    return str(path.absolute()) if source and os.path.exists(path) else source
