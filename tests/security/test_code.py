"""Python code that comes with a model runs only if `--trust-remote-code` was typed."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import datasets
import pytest

from embedtune.cli.main import main
from embedtune.errors import ModelError
from embedtune.models.encoder import Encoder

Load = Callable[..., Encoder]
REFUSED = r"comes with Python code of its own, which was not run\.\n.+--trust-remote-code"


@pytest.fixture(autouse=True)
def _own_cache_of_modules(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where transformers copies the code that comes with models."""
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "modules"))
    monkeypatch.syspath_prepend(str(tmp_path / "modules"))


@pytest.fixture
def own_module(st_folder: Path, tmp_path: Path, code: str) -> Path:
    """A folder whose last module is a class in a file beside it."""
    folder = shutil.copytree(st_folder, tmp_path / "own_module")
    code += "from sentence_transformers.sentence_transformer.modules import Normalize\nclass Own(Normalize): pass\n"
    (folder / "own.py").write_text(code)
    modules = json.loads((folder / "modules.json").read_text())
    modules[2]["type"] = "own.Own"
    (folder / "modules.json").write_text(json.dumps(modules))
    return folder


@pytest.fixture
def own_architecture(st_folder: Path, tmp_path: Path, code: str) -> Path:
    """A folder whose backbone is a class in a file beside it."""
    folder = shutil.copytree(st_folder, tmp_path / "own_architecture")
    classes = "from transformers import BertConfig, BertModel\nclass C(BertConfig): model_type = 'own'\n"
    (folder / "own.py").write_text(f"{code}{classes}class M(BertModel): config_class = C\n")
    config = json.loads((folder / "config.json").read_text())
    config.update(model_type="own", auto_map={"AutoConfig": "own.C", "AutoModel": "own.M"})
    (folder / "config.json").write_text(json.dumps(config))
    return folder


@pytest.mark.parametrize("kind", ["own_module", "own_architecture"])
def test_a_base_with_code(kind: str, request: pytest.FixtureRequest, mark: Path, load: Load) -> None:
    folder = request.getfixturevalue(kind)
    with pytest.raises(ModelError, match=REFUSED):
        load(folder)
    assert not mark.exists()
    assert load(folder, trust_remote_code=True).embedding_size == 32
    assert mark.exists()


def test_a_known_architecture_with_code_runs_without_it(own_architecture: Path, mark: Path, load: Load) -> None:
    config = json.loads((own_architecture / "config.json").read_text())
    (own_architecture / "config.json").write_text(json.dumps({**config, "model_type": "bert"}))
    assert load(own_architecture).embedding_size == 32
    assert not mark.exists()


@pytest.mark.parametrize("class_", ["os.system", "own.Own", "tests.security.conftest._Bomb"])
def test_a_class_that_is_installed(class_: str, own_module: Path, mark: Path, load: Load) -> None:
    modules = json.loads((own_module / "modules.json").read_text())
    modules[2]["type"] = class_
    (own_module / "modules.json").write_text(json.dumps(modules))
    with pytest.raises(ModelError, match=REFUSED):
        load(own_module)
    assert not mark.exists()


def test_the_flag_counts_for_all_models_of_a_command(
    own_module: Path, st_folder: Path, pairs_file: Path, mark: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["eval", str(st_folder), "--test", str(pairs_file), "--against", str(own_module)]
    assert main(command) == 2
    assert "type:  --trust-remote-code" in capsys.readouterr().err
    assert not mark.exists()
    assert main([*command, "--trust-remote-code"]) == 0


@pytest.mark.parametrize("kind", ["own_module", "own_architecture"])
def test_a_model_with_code_can_be_trained_and_its_card_does_not_type_the_flag(
    kind: str, request: pytest.FixtureRequest, pairs_file: Path, tmp_path: Path
) -> None:
    base = request.getfixturevalue(kind)
    command = ["train", str(pairs_file), "--base", str(base), "--out", str(tmp_path / "run"), "--max-steps", "2"]
    assert main(command) == 2
    assert main([*command, "--trust-remote-code"]) == 0
    assert (tmp_path / "run" / "model" / "own.py").is_file()
    card = (tmp_path / "run" / "model" / "README.md").read_text()
    assert "trust_remote_code = true" not in card
    assert "--config config.toml --out run --trust-remote-code" in card


def test_a_data_set_with_a_loading_script(tmp_path: Path, mark: Path, code: str) -> None:
    script = tmp_path / "data" / "data.py"
    script.parent.mkdir()
    script.write_text(code)
    for source in (script, script.parent):
        with pytest.raises((RuntimeError, datasets.exceptions.DataFilesNotFoundError, FileNotFoundError)):
            datasets.load_dataset(str(source))
    assert not mark.exists()
