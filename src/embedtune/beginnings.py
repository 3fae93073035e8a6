"""How a run begins: all that can be wrong with its input is looked at before anything is written, or long computed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Generic

from embedtune.config import LossConfig, ModelConfig
from embedtune.config_file import Config, to_toml
from embedtune.data.fingerprint import data_hashes
from embedtune.data.prepare import Splits, prepare, write_splits
from embedtune.evaluation.general import GeneralSet, general_sets
from embedtune.export.run_folder import RunFolder, RunLock, write_json, write_text
from embedtune.facts import hub_revisions
from embedtune.loading import check_loadable, load_base, other_model, other_models
from embedtune.mining.with_encoder import judge_beside
from embedtune.models.adapters import check_trainable
from embedtune.models.encoder import Encoder
from embedtune.models.source import pinned_name
from embedtune.progress import Reporter
from embedtune.report.results import environment
from embedtune.resolving import resolve
from embedtune.resuming import Identity, same_settings
from embedtune.trainer import run_plan
from embedtune.training.kinds import settings_for
from embedtune.training.objective import check_loss, check_loss_models
from embedtune.training.optim import check_8bit
from embedtune.training.plan import Plan, make_plan


@dataclass(frozen=True, kw_only=True)
class Beginning(Generic[Config]):
    """What a run has once its input is known to be usable; nothing of it is in a folder yet."""

    config: Config
    """With nothing left open but what the free memory decides."""
    identity: Identity
    splits: Splits
    general: list[GeneralSet]
    """Sets that tell what the model forgets."""
    encoder: Encoder
    """The base model, frozen, as it will be trained."""
    others: dict[str, ModelConfig]
    """The models of `against` by the names to show; known to load, and not loaded."""
    plan: Plan
    data_commits: Mapping[str, str | None]
    """Of the data sets that came from the Hub."""

    @property
    def environment(self) -> dict[str, Any]:
        """The section "environment" of the results: machine, versions, and which weights and data these were."""
        now = self.identity.now
        revisions = hub_revisions(self.config.model, self.others, self.data_commits)
        return {**now["environment"], "base_weights": now["base_weights"], **revisions}


def take_up(config: Config, folder: RunFolder, lock: RunLock, *, command: str = "train") -> Config:
    """The config as given; where a run is resumed, with what it leaves open as it was, and the run's lock taken.

    Args:
        config: of the run.
        folder: of the run.
        lock: of that folder.
        command: what made the run, for messages.

    Raises:
        ConfigError: it contradicts the run that it resumes.
        OutputError: another run is writing there.
    """
    if not config.output.resume:
        return config
    lock.take()
    return same_settings(config, folder, command=command)


def begin(config: Config, folder: RunFolder, reporter: Reporter) -> Beginning[Config]:
    """Read and split the data, load the base model, and look at everything else that the run will need.

    What takes seconds is looked at before what takes minutes: settings that don't fit the data before the base model is
    loaded, further models' names before anything is embedded.

    Args:
        config: of the run, from `take_up`.
        folder: of the run; what is resumed has to be the same run.
        reporter: is told what was read and loaded.

    Raises:
        UserError: the data, a model or an option can't be used.
    """
    identity = Identity(folder, resume=config.output.resume)
    reporter.stage("Data")
    splits = prepare(config.data, seed=config.output.seed)
    general = general_sets(config.evaluation.forgetting)
    graded = splits.collection.graded
    training, loss = settings_for(config.training, config.loss, graded=graded)
    config = replace(config, training=training, loss=loss)
    identity.check_data(data_hashes(splits), {name: len(pairs) for name, pairs in splits.pairs.items()})
    make_plan(config.training, len(splits.train))  # says what can't be planned, before the model is loaded
    _report_splits(splits, reporter)

    reporter.stage("Base model")
    encoder = load_base(config, reporter)
    identity.check_base(encoder)
    if (changed := identity.check_environment(environment(encoder.device, encoder.source.precision))) is not None:
        reporter.warn(changed)
    others, loss = _check_fit(config, encoder, splits)
    config = replace(config, loss=loss)
    plan = run_plan(config, splits, encoder)
    if any(phase.mines for phase in plan.phases) and (judge := judge_beside(encoder, config.mining)) is not None:
        config = replace(config, mining=replace(config.mining, judge=judge.pinned_name))
    config, data_commits = resolve(config, plan, encoder, others=tuple(map(pinned_name, others.values())))
    return Beginning(
        config=config,
        identity=identity,
        splits=splits,
        general=general,
        encoder=encoder,
        others=others,
        plan=plan,
        data_commits=data_commits,
    )


def _report_splits(splits: Splits, reporter: Reporter) -> None:
    """What was read, how it was split, and what was not used."""
    for note in splits.notes:
        reporter.note(note)
    for warning in splits.warnings:
        reporter.warn(warning)
    reporter.note(
        f"{len(splits.train):,} pairs to train on, {len(splits.dev):,} to choose the checkpoint on, "
        f"{len(splits.test):,} to test on; {len(splits.collection.passages):,} distinct "
        f"{'sentences' if splits.collection.sentences else 'passages'}"
    )
    dropped = [f"{count:,} {reason.replace('_', ' ')}" for reason, count in splits.dropped.items() if count]
    if dropped:
        reporter.note("not used: " + ", ".join(dropped))


def _check_fit(config: Config, encoder: Encoder, splits: Splits) -> tuple[dict[str, ModelConfig], LossConfig]:
    """Whether the settings fit the base model, and every further model can be had; the names of these, with commits."""
    check_trainable(encoder, config.adapter)
    others = check_loadable(other_models(replace(config.model, max_length=None), config.evaluation.against))
    check_loss(config.loss, encoder, splits.train)
    loss = check_loss_models(config.loss, other_model(config.model))
    if config.training.optimizer == "adamw8bit":
        check_8bit(encoder.device)
    return others, loss


def claim(begun: Beginning[Config], config: Config, folder: RunFolder, lock: RunLock, *, resume: bool) -> None:
    """Make the folder the run's own, and write there what the run is: its settings, what it was made of, its splits.

    Args:
        begun: how it began.
        config: as it is to be repeated.
        folder: of the run.
        lock: of that folder; a resumed run has taken it.
        resume: whether the folder is the run's already.

    Raises:
        OutputError: the folder can't be made, or another run was there meanwhile.
    """
    if not resume:
        folder.create()
        lock.take()
        folder.check(resume=False)  # another run may have been there in the meantime
    write_text(folder.config, to_toml(config))
    write_json(folder.fingerprint, begun.identity.now)
    write_splits(begun.splits, folder.splits)
