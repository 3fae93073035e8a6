"""What becomes of the trained weights: how much of them is kept, what is written, and the proof of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor

from embedtune.config import TrainConfig
from embedtune.data.collection import Collection
from embedtune.evaluation.blending import WEIGHTS, blend_curve, blend_facts, gain
from embedtune.evaluation.forgetting import SetScores
from embedtune.evaluation.general import GeneralSet
from embedtune.evaluation.run import Evaluation
from embedtune.evaluation.similarity import Similarity
from embedtune.export.run_folder import RunFolder, write_text
from embedtune.export.sentence_transformers import check_saved, compare_saved, save_adapter, save_merged
from embedtune.loading import load
from embedtune.measuring import DevSet
from embedtune.models.blend import blended
from embedtune.models.encoder import Encoder
from embedtune.progress import Reporter, SilentReporter
from embedtune.report.card.body import model_card
from embedtune.report.card.metadata import Part, base_metadata
from embedtune.report.card.usage import CardModel

TEXTS_CHECKED = 64
"""Passages whose embeddings are compared after the saved model is loaded again."""


@dataclass(frozen=True, kw_only=True)
class Saved:
    """What lies in the run's folder."""

    encoder: Encoder
    """Embeds as the saved model does: the trained one, or the saved one loaded again where these differ."""
    cosines_N: Tensor
    """Similarity of what the saved and the trained model make of some passages."""


def blend(
    encoder: Encoder,
    config: TrainConfig,
    dev: DevSet,
    sets: list[GeneralSet],
    base: Sequence[SetScores],
    reporter: Reporter,
) -> dict[str, Any]:
    """The curve from base to tuned on dev and the general sets, and the weight of the tuned model that is used.

    That is 0 if the gain on dev is not clear and the config asks for that: the best of several evaluations on few
    questions is easily a little above the base by chance.

    Args:
        encoder: the trained one.
        config: of the run; its `blend` is the weight, or leaves it to the curve.
        dev: from `dev_set`. The test set has no part in it.
        sets: from `general_sets`.
        base: what the base model reached on these.
        reporter: is told how it goes.
    """
    metric, given, seed = config.training.metric, config.evaluation.blend, config.output.seed
    known = {} if dev.base is None else {0.0: (dev.base, base)}
    with reporter.counting("between base and tuned, on the dev set", len(WEIGHTS) - len(known)) as advance:
        points = blend_curve(
            encoder,
            dev.measure,
            sets,
            metric=metric,
            into_original=config.adapter.merge_into == "original",
            known=known,
            groups_Q=None if dev.task is None else dev.task.groups_Q,
            on_done=advance,
        )
    facts = blend_facts(points, metric=metric, used=1.0, seed=seed)
    recommended = facts["recommended"]
    facts["used"] = used = recommended if given == "auto" else given
    curve = ", ".join(f"{point.weight:g}: {point.dev:.4f} / {point.forgetting:.4f}" for point in points)
    reporter.note(f"weight of the tuned model: dev {metric} / mean of the general sets   {curve}")
    found = gain(points, seed=seed)
    facts["gain"] = found.facts()
    facts["declined"] = config.evaluation.accept == "clear" and not found.clear and not config.adapter.start_adapter
    if facts["declined"]:
        facts["used"] = 0.0
        reporter.warn(
            f"the gain on dev is within noise ({metric} {found.mean:+.4f}, standard error {found.error:.4f}), so "
            "the base is saved as it was. For the tuned model, type:  --accept any"
        )
        return facts
    hint = "" if used == recommended else f"; --blend {recommended:g} is recommended, by dev and the general sets"
    reporter.note(f"saved with weight {used:g}{hint}")
    return facts


def save(
    encoder: Encoder,
    config: TrainConfig,
    weight: float,
    collection: Collection,
    folder: RunFolder,
    reporter: Reporter,
    *,
    adapter: bool = True,
) -> Saved:
    """Adapter and merged model to disk, and the proof that what lies there is what was trained.

    Args:
        encoder: the trained one.
        config: of the run.
        weight: of the tuned model in what is saved, 1 for all of it. The adapter is saved as trained whatever it is.
        collection: whose first passages are embedded for the proof.
        folder: of the run.
        reporter: is told how it went.
        adapter: whether the adapter is saved, if there is one.

    Raises:
        ExportMismatchError: the saved model does not embed as it should.
    """
    into_original = config.adapter.merge_into == "original"
    if encoder.adapter is not None and adapter:
        save_adapter(encoder, folder.adapter)
    save_merged(encoder, folder.model, into_original=into_original, weight=weight)
    passages = collection.passages[:TEXTS_CHECKED]
    if weight == 1 and not into_original:
        cosines_N = check_saved(folder.model, encoder, passages)
        reporter.note(
            f"the saved model, loaded again, agrees with the trained one: cosine at least {cosines_N.min():.5f}"
        )
        return Saved(encoder=encoder, cosines_N=cosines_N)
    if weight != 1:
        check_saved(folder.model, blended(encoder, weight, into_original=into_original), passages)
    cosines_N = compare_saved(folder.model, encoder, passages)
    saved = load(replace(config.model, base=str(folder.model), revision=None), SilentReporter())
    return Saved(encoder=saved, cosines_N=cosines_N)


def merged_into_original(
    trained: Evaluation | Similarity, tuned: Evaluation | Similarity, saved: Saved, *, metric: str, reporter: Reporter
) -> dict[str, Any]:
    """What merging into other weights than those trained on has cost."""
    reporter.note(
        f"merged into the original weights: {metric} {trained.means[metric]:.4f} became {tuned.means[metric]:.4f}, "
        f"cosine to the trained embeddings at least {saved.cosines_N.min():.4f}"
    )
    return {
        "into": "original",
        "trained": trained.means,
        "cosine": {"min": saved.cosines_N.min().item(), "mean": saved.cosines_N.mean().item()},
    }


def write_cards(results: dict[str, Any], config: TrainConfig, encoder: Encoder, folder: RunFolder) -> None:
    """A README beside the merged model, and one beside the adapter in place of PEFT's own."""
    model = CardModel(
        dimensions=encoder.embedding_size,
        max_length=encoder.max_length,
        prompts={role: prompt for role, prompt in encoder.prompts.items() if prompt},
        similarity=encoder.similarity_fn_name,
        own_code=config.model.trust_remote_code,
    )
    base = base_metadata(config.model.base, config.model.revision)
    parts: dict[Part, Any] = {"model": folder.model, "adapter": folder.adapter}
    for part, place in parts.items():
        if place.is_dir():
            write_text(place / "README.md", model_card(results, config, model, base=base, part=part))
