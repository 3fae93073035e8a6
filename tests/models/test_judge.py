"""A cross-encoder as judge: what it says is what Sentence Transformers gives, and nothing unsafe is read."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from sentence_transformers import CrossEncoder

from embedtune.config import ModelConfig
from embedtune.errors import ModelError
from embedtune.models.cross_encoder import find_cross_encoder
from embedtune.models.judge import Judge, load_judge

PAIRS = [("bador kefin", "ligal mohem nujin"), ("bador", "bador kefin"), ("x", "")]


def load(folder: Path, **options: bool) -> Judge:
    return load_judge(str(folder), device=torch.device("cpu"), **options)


def test_logits_are_those_of_the_cross_encoder_whatever_its_activation(
    make_judge: Callable[..., Path], tmp_path: Path
) -> None:
    folder = make_judge()
    expected = CrossEncoder(str(folder), device="cpu").predict(PAIRS, activation_fn=torch.nn.Identity())
    np.testing.assert_allclose(load(folder).logits(PAIRS), expected, atol=1e-5)
    assert len(set(expected.round(6))) == 3
    # As MS MARCO's rerankers are saved, whose own scores are logits; the others' are from 0 to 1.
    CrossEncoder(str(folder), device="cpu", activation_fn=torch.nn.Identity()).save_pretrained(str(tmp_path))
    np.testing.assert_allclose(load(tmp_path).logits(PAIRS), expected, atol=1e-5)
    assert load(folder).logits([]).shape == (0,)


def test_what_is_no_number_is_refused(make_judge: Callable[..., Path], tmp_path: Path) -> None:
    folder = shutil.copytree(make_judge(), tmp_path / "judge")
    weights = load_file(folder / "model.safetensors")
    weights["classifier.bias"].fill_(float("nan"))
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ModelError, match="gives nan for 'bador kefin' with 'ligal mohem nujin', expected a number"):
        load(folder).logits(PAIRS)


def test_what_is_no_judge_is_refused(make_judge: Callable[..., Path], st_folder: Path, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="is no cross-encoder: its config names BertModel"):
        load(st_folder)
    with pytest.raises(ModelError, match="gives 3 scores for a question and a passage, expected one"):
        load(make_judge(labels=3))
    with pytest.raises(ModelError, match=r"it does not exist[\s\S]*cross-encoder/ms-marco-MiniLM-L6-v2"):
        load(tmp_path / "nowhere")
    broken = shutil.copytree(make_judge(), tmp_path / "broken")
    (broken / "model.safetensors").write_bytes(b"no weights")
    with pytest.raises(ModelError, match="could not be loaded as a cross-encoder"):
        load(broken)


@pytest.mark.parametrize(
    ("named", "modules", "model_type", "passes"),
    [
        (["BertForSequenceClassification"], False, None, True),
        (["BertForSequenceClassification"], True, None, True),
        (["Qwen3ForCausalLM"], False, None, True),
        (["Qwen3ForCausalLM"], True, None, False),  # Qwen3-Embedding
        (["Qwen3ForCausalLM"], True, "CrossEncoder", True),
        (["BertModel"], True, "CrossEncoder", True),
        (["BertModel"], True, "SentenceTransformer", False),
        ("BertForMaskedLM", False, None, False),
        (None, False, None, False),
    ],
)
@pytest.mark.parametrize("option", ["judge", "teacher"])
def test_what_has_a_head_passes_for_judge_and_teacher_alike(
    named: Any, modules: bool, model_type: str | None, passes: bool, option: str, tmp_path: Path
) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"architectures": named}))
    if modules:
        (tmp_path / "modules.json").write_text("[]")
    if model_type is not None:
        (tmp_path / "config_sentence_transformers.json").write_text(json.dumps({"model_type": model_type}))
    config = ModelConfig(base=str(tmp_path))
    if passes:
        assert find_cross_encoder(config, option=option) == tmp_path
        return
    with pytest.raises(ModelError, match=rf"--{option} {tmp_path} is no cross-encoder: its config names") as caught:
        find_cross_encoder(config, option=option)
    assert f"Type:  --{option} cross-encoder/ms-marco-MiniLM-L6-v2" in str(caught.value)


def test_pickled_weights_are_refused(make_judge: Callable[..., Path], tmp_path: Path) -> None:
    folder = shutil.copytree(make_judge(), tmp_path / "judge")
    (folder / "model.safetensors").unlink()
    torch.save({}, folder / "pytorch_model.bin")
    with pytest.raises(ModelError, match=r"a pickle is never read here[\s\S]*import CrossEncoder as M"):
        load(folder)


def test_code_that_comes_with_it_is_not_run(make_judge: Callable[..., Path], tmp_path: Path) -> None:
    folder, mark = shutil.copytree(make_judge(), tmp_path / "judge"), tmp_path / "ran"
    (folder / "modeling_own.py").write_text(f"open({str(mark)!r}, 'w').close()\n")
    config = json.loads((folder / "config.json").read_text())
    own = {"AutoConfig": "modeling_own.C", "AutoModelForSequenceClassification": "modeling_own.M"}
    (folder / "config.json").write_text(json.dumps({**config, "model_type": "own", "auto_map": own}))
    with pytest.raises(ModelError, match="which was not run"):
        load(folder)
    assert not mark.exists()
