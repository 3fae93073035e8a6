"""Whether what is resumed is the same run: its settings, its data and its base model."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from embedtune.config import GRADED_METRIC, TrainingConfig
from embedtune.config_file import Config, load_config
from embedtune.errors import ConfigError, DataError, ModelError, OutputError, brief
from embedtune.export.run_folder import RunFolder
from embedtune.models.encoder import Encoder

MAY_CHANGE = {
    "model": {"base", "revision", "device", "trust_remote_code"},
    "adapter": {"merge_into"},
    "training": {
        "keep_last",
        "checkpoint_minutes",
        "max_time",
        "micro_batch_tokens",
        "gradient_checkpointing",
        "deterministic",
    },
    "loss": set(),
    "mining": set(),
    "tuning": {"trials", "time_budget"},
    "output": {"out", "resume"},
}
"""Settings that say where and how a run computes, and not what. The base model is known by its weights, wherever it
lies. Sections that are not named here, `data` among them, may change: the data is known by its hashes, and what is
evaluated and reported is no part of the training."""
DERIVED = {
    "model": {"max_length", "precision"},
    "training": {
        "lr",
        "batch_size",
        "epochs",
        "mined_epochs",
        "trainings",
        "mined_lr",
        "mined_batch_size",
        "mined_batches",
        "averaging",
        "schedule",
        "eval_steps",
        "micro_batch_tokens",
    },
    "loss": {"loss"},
    "tuning": {"dials"},
}
"""Where these are left open, they are what they were."""
SAMPLED_VALUES = 1024
"""Of each tensor of the base model, for its fingerprint."""


def same_settings(config: Config, folder: RunFolder, *, command: str = "train") -> Config:
    """The config to resume the run of that folder with: what it leaves open is as it was.

    Args:
        config: as given now.
        folder: holds the config as it was.
        command: what made the run, for the message.

    Raises:
        ConfigError: it contradicts the run's own; the message shows each difference.
    """
    before, differences = load_config(type(config), folder.config), list[str]()
    for section in [name for name in MAY_CHANGE if hasattr(config, name)]:
        then, now = getattr(before, section), getattr(config, section)
        names = {field.name for field in dataclasses.fields(now)}
        open_ones = {name for name in DERIVED.get(section, ()) if getattr(now, name) in (None, "auto", ())}
        if section == "training" and (now.metric, then.metric) == (TrainingConfig.metric, GRADED_METRIC):
            open_ones.add("metric")  # graded pairs have that one
        open_ones |= {name for name in names if _without_commit(getattr(then, name)) == getattr(now, name)}
        now = replace(now, **{name: getattr(then, name) for name in open_ones})
        for name in sorted(names - MAY_CHANGE[section]):
            if _plain(getattr(then, name)) != _plain(getattr(now, name)):
                option = name.replace("_", "-")
                differences.append(f"  --{option}: {getattr(then, name)} then, {getattr(now, name)} now")
        config = replace(config, **{section: now})
    if differences:
        raise ConfigError(
            f"--resume: the run in {folder.root} was made with other settings:\n" + "\n".join(differences) + "\n"
            f"Type:  embedtune {command} --config {folder.config} --resume   to go on with it, or leave --resume out "
            "and give another --out."
        )
    return config


class Identity:
    """What a run was made of, kept in its folder from its first step on."""

    def __init__(self, folder: RunFolder, *, resume: bool) -> None:
        """Read what the folder says; it says nothing of a run that is new, or was killed before its first step.

        Raises:
            OutputError: it can't be read.
        """
        self.now: dict[str, Any] = {}
        self._folder = folder
        self._before: dict[str, Any] = {}
        if resume and folder.fingerprint.is_file():
            try:
                self._before = _identity(json.loads(folder.fingerprint.read_text(encoding="utf-8")))
            except (OSError, ValueError, RecursionError) as error:
                raise OutputError(
                    f"{folder.fingerprint}: can't be read, so nothing tells whether the data is the same: {error}\n"
                    "Delete that file to go on all the same."
                ) from error

    def check_data(self, hashes: Mapping[str, str], pairs: Mapping[str, int]) -> None:
        """Note the data, and compare.

        Args:
            hashes: of `data_hashes`.
            pairs: number of pairs of each split.

        Raises:
            DataError: it is not what the run was made with; the message says which split changed.
        """
        self.now["data"] = {"hashes": dict(hashes), "pairs": dict(pairs)}
        before = self._before.get("data", {"hashes": {}, "pairs": {}})
        changed = [name for name, now in hashes.items() if before["hashes"].get(name, now) != now]
        if changed:
            lines = [f"  {name}{_counts(name, before['pairs'], pairs)}" for name in changed]
            raise DataError(
                f"--resume: the data has changed since the run in {self._folder.root} began. Other SHA-256 of:\n"
                + "\n".join(lines)
                + f"\nIts pairs are in {self._folder.splits}. Give the data that it had, or leave --resume out and\n"
                "give another --out to train on this."
            )

    def check_base(self, encoder: Encoder) -> None:
        """Note the base model's weights, and compare.

        Args:
            encoder: as loaded, before anything is made trainable.

        Raises:
            ModelError: they are not what the run was made with.
        """
        self.now["base_weights"] = base_fingerprint(encoder)
        if self._before.get("base_weights", self.now["base_weights"]) != self.now["base_weights"]:
            raise ModelError(
                f"--resume: the weights of {encoder.source.base} are not those that the run in {self._folder.root} "
                "began with.\nGive the --base (and --revision) it had, or leave --resume out and give another --out."
            )

    def check_environment(self, environment: Mapping[str, Any]) -> str | None:
        """Note versions and device; returns what differs, as the last digits of the weights may differ with it."""
        self.now["environment"] = dict(environment)
        before = self._before.get("environment", {})
        changed = [
            f"{name} {brief(then)}, now {environment.get(name)}"
            for name, then in before.items()
            if environment.get(name) != then
        ]
        return f"this run began with {'; '.join(changed)}: weights may differ in their last digits" if changed else None


def _identity(value: Any) -> dict[str, Any]:
    """What `Identity` wrote.

    Raises:
        ValueError: it is something else.
    """
    if not isinstance(value, dict):
        raise ValueError(f"it holds a {type(value).__name__}, expected an object")
    data, environment = value.get("data", {"hashes": {}, "pairs": {}}), value.get("environment", {})
    if not isinstance(environment, dict) or not isinstance(data, dict):
        raise ValueError("its 'data' or 'environment' is no object")
    for name, kind in (("hashes", str), ("pairs", int)):
        entries = data.get(name)
        if not isinstance(entries, dict) or not all(isinstance(entry, kind) for entry in entries.values()):
            raise ValueError(f"its '{name}' are not what a run writes")
    return value


def base_fingerprint(encoder: Encoder) -> str:
    """SHA-256 of a sample of every tensor of the model that is not in 4 bits."""
    digest = hashlib.sha256()
    for name, parameter in encoder.named_parameters():
        if parameter.is_floating_point():
            flat = parameter.detach().flatten()
            sample = flat[:: max(1, len(flat) // SAMPLED_VALUES)].float().cpu().numpy()
            digest.update(f"{name} {tuple(parameter.shape)}".encode())
            digest.update(sample.tobytes())
    return digest.hexdigest()


def _counts(split: str, then: Mapping[str, int], now: Mapping[str, int]) -> str:
    return f" ({then[split]:,} pairs then, {now[split]:,} now)" if split in then and split in now else ""


def _without_commit(value: Any) -> Any:
    """A hub id as it was typed before the run named the commit, `OWNER/NAME@COMMIT`."""
    return value.partition("@")[0] if isinstance(value, str) and not Path(value).exists() else value


def _plain(value: Any) -> Any:
    """A path that was typed as it is saved."""
    return str(Path(value).absolute()) if isinstance(value, str) and Path(value).exists() else value
