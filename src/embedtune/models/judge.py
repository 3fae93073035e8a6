"""A cross-encoder that says how well a passage answers a question, reading both at once.

Shapes: `P` pairs of a question and a passage.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from sentence_transformers import CrossEncoder

from embedtune.config import ModelConfig
from embedtune.errors import ModelError, brief
from embedtune.models.cross_encoder import find_cross_encoder, open_cross_encoder
from embedtune.models.source import looks_like_a_folder, named, pinned_name

PAIRS_PER_FORWARD = {"cpu": 32, "cuda": 256}


@dataclass(frozen=True)
class Judge:
    """A cross-encoder, loaded. Made by `load_judge`."""

    name: str
    """As typed, but for the revision."""
    revision: str | None
    """The commit of a hub model."""
    model: CrossEncoder

    @property
    def pinned_name(self) -> str:
        """What names it again, from any folder: OWNER/NAME@COMMIT, or the full path."""
        return pinned_name(ModelConfig(base=self.name, revision=self.revision))

    def logits(self, pairs: Sequence[tuple[str, str]]) -> npt.NDArray[np.float64]:
        """How well each passage answers its question, without the judge's own activation, shape (P,).

        Raises:
            ModelError: it gives something else than a number.
        """
        if not pairs:
            return np.zeros(0)
        size = PAIRS_PER_FORWARD.get(self.model.device.type, PAIRS_PER_FORWARD["cpu"])
        scores_P = self.model.predict(list(pairs), batch_size=size, show_progress_bar=False, convert_to_tensor=True)
        found: npt.NDArray[np.float64] = scores_P.double().cpu().numpy()
        if not np.isfinite(found).all():
            bad = int((~np.isfinite(found)).argmax())
            raise ModelError(
                f"--judge {self.name} gives {found[bad]} for '{brief(pairs[bad][0])}' with '{brief(pairs[bad][1])}', "
                "expected a number.\nType:  another --judge."
            )
        return found


def load_judge(name: str, *, device: torch.device, trust_remote_code: bool = False) -> Judge:
    """A cross-encoder with one score, in fp32: what is compared are small differences of scores.

    Args:
        name: hub id, with or without `@REVISION`, or folder.
        device: where to compute.
        trust_remote_code: run Python code that comes with it.

    Raises:
        ModelError: there is no such model, its weights are pickled, or it is no cross-encoder with one score.
    """
    config = named(ModelConfig(trust_remote_code=trust_remote_code), name)
    folder = find_cross_encoder(config, option="judge")
    model = open_cross_encoder(folder, config, option="judge", device=device, activation=torch.nn.Identity())
    revision = None if looks_like_a_folder(config.base) else folder.name
    return Judge(name=config.base, revision=revision, model=model.eval())
