"""Importing the package changes nothing and costs little."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

import embedtune

PROBE = """
import json, logging, os, sys, warnings
before = dict(os.environ), list(logging.root.handlers), logging.root.level, list(warnings.filters), list(sys.argv)
import embedtune, embedtune.config, embedtune.errors
after = dict(os.environ), list(logging.root.handlers), logging.root.level, list(warnings.filters), list(sys.argv)
print(json.dumps({
    "unchanged": before == after,
    "handlers": len(logging.getLogger("embedtune").handlers),
    "heavy": sorted({"torch", "transformers", "peft", "sentence_transformers", "datasets", "scipy"} & set(sys.modules)),
}))
"""


def test_importing_changes_nothing_and_loads_no_torch() -> None:
    ran = subprocess.run([sys.executable, "-c", PROBE], capture_output=True, text=True, check=True)
    assert json.loads(ran.stdout) == {"unchanged": True, "handlers": 0, "heavy": []}
    assert ran.stderr == ""


EVERY_MODULE = """
import importlib, json, logging, os, pkgutil
import sentence_transformers, peft, accelerate, datasets
before = dict(os.environ), list(logging.root.handlers), logging.root.level
import torch
threads, grad = torch.get_num_threads(), torch.is_grad_enabled()
import embedtune
for module in pkgutil.walk_packages(embedtune.__path__, "embedtune."):
    if not module.name.endswith("__main__"):
        importlib.import_module(module.name)
after = dict(os.environ), list(logging.root.handlers), logging.root.level
print(json.dumps([before == after, threads == torch.get_num_threads(), grad == torch.is_grad_enabled()]))
"""


def test_importing_every_module_changes_nothing_either() -> None:
    """The libraries first: what they change is theirs."""
    ran = subprocess.run([sys.executable, "-c", EVERY_MODULE], capture_output=True, text=True, check=True)
    assert json.loads(ran.stdout) == [True, True, True]


@pytest.mark.parametrize("name", embedtune.__all__)
def test_public_names_resolve(name: str) -> None:
    assert getattr(embedtune, name) is not None
    assert name in dir(embedtune)


def test_public_names_are_listed_once_and_in_order() -> None:
    assert len(set(embedtune.__all__)) == len(embedtune.__all__)
    assert sorted(embedtune.__all__) == list(embedtune.__all__)


def test_names_that_do_not_exist() -> None:
    with pytest.raises(AttributeError, match="module 'embedtune' has no attribute 'fit'"):
        embedtune.fit  # noqa: B018
