"""What a step makes smaller."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

from tyro.constructors import PrimitiveConstructorSpec

from embedtune.checks import require, require_choice, require_usable
from embedtune.errors import ConfigError

SCALES = (1.0, 100.0)
"""Least and greatest scale that is learned."""


def _sizes(words: list[str]) -> tuple[int, ...]:
    return tuple(int(size) for word in words for size in word.split(",") if size)


_SIZES = PrimitiveConstructorSpec[tuple[int, ...]](
    nargs="*",
    metavar="SIZE [SIZE ...]",
    instance_from_str=_sizes,
    is_instance=lambda value: isinstance(value, tuple) and all(type(size) is int for size in value),
    str_from_instance=lambda sizes: [str(size) for size in sizes],
)
"""Numbers with spaces or commas between them."""


@dataclass(frozen=True, kw_only=True)
class LossConfig:
    """What a step makes smaller."""

    loss: Literal["auto", "contrastive", "cosent"] = "auto"
    """Contrastive for questions and passages, CoSENT for graded pairs: a higher grade is to have a higher cosine; auto
    takes what fits the data."""
    scale: float = 20.0
    """Factor on the cosine similarities in the loss, the inverse of the temperature."""
    learn_scale: bool = False
    """Train the scale too, from that value on; it stays between 1 and 100."""
    both_directions: bool = False
    """Also rank the batch's questions for each passage."""
    matryoshka: Annotated[tuple[int, ...], _SIZES] = ()
    """Sizes at which the embeddings, cut off and normalised again, are trained too; the full size is among them."""
    matryoshka_weights: tuple[float, ...] = ()
    """Weight of the loss at each of these sizes; the mean of them if not given."""
    distill: Literal["none", "kl", "margin-mse"] = "none"
    """Add a loss that brings the scores of a row's own passages, positive and hard negatives, near a teacher's: their
    distribution (kl), or how far the positive is ahead (margin-mse)."""
    teacher: str | None = None
    """Hub id or folder of a cross-encoder that scores these passages before the training; without it the scores in the
    data are taken."""
    distill_weight: float = 1.0
    """Factor on that loss; the contrastive one has 1."""
    distill_temperature: float = 1.0
    """What teacher's and model's scores are divided by in kl; more than 1 makes both distributions flatter."""
    bm25_weight: float | None = None
    """Weight of a loss that brings the model's scores of the batch near BM25's, in the epochs with mined negatives; 0
    for none. If not given 0.3, and 0 where BM25 finds less than half of the training answers, or misses more than 1.7
    times what the model by then misses of a dev metric of 1."""
    guide: str | None = None
    """Leave out negatives that look like answers: hub id or folder of an encoder that tells, or `self` for the one in
    training."""
    guide_margin: float = 0.0
    """A negative is left out where the guide scores it above the positive less this margin; below 0, above it by so
    much."""

    def __post_init__(self) -> None:
        require_usable(self)
        require_choice(self, "loss")
        require_choice(self, "distill")
        require(self.scale > 0, "scale", self.scale, "a number above 0, such as 20")
        if self.learn_scale:
            lowest, highest = SCALES
            expected = f"{lowest:g} to {highest:g} with --learn-scale, which keeps it there"
            require(lowest <= self.scale <= highest, "scale", self.scale, expected)
        self._check_matryoshka()
        self._check_distillation()
        if self.bm25_weight is not None:
            require(self.bm25_weight >= 0, "bm25-weight", self.bm25_weight, "0 or more")
        require(-2 <= self.guide_margin <= 2, "guide-margin", self.guide_margin, "a difference of cosines: 0.05")
        if self.guide is None and self.guide_margin != 0:
            raise _without("guide-margin", self.guide_margin, "guide", "--guide self")

    def _check_matryoshka(self) -> None:
        sizes, weights = self.matryoshka, self.matryoshka_weights
        expected = "different sizes of 1 or more, such as 384 192 96"
        require(all(size >= 1 for size in sizes) and len(set(sizes)) == len(sizes), "matryoshka", sizes, expected)
        require(all(weight > 0 for weight in weights), "matryoshka-weights", weights, "numbers above 0")
        if weights and not sizes:
            raise _without("matryoshka-weights", weights, "matryoshka", "--matryoshka SIZE SIZE ...")
        expected = f"one for each of the {len(sizes)} sizes of --matryoshka"
        require(len(weights) in (0, len(sizes)), "matryoshka-weights", weights, expected)

    def _check_distillation(self) -> None:
        require(self.distill_weight > 0, "distill-weight", self.distill_weight, "a number above 0")
        require(self.distill_temperature > 0, "distill-temperature", self.distill_temperature, "a number above 0")
        if self.distill == "none":
            for option, value, default in (
                ("teacher", self.teacher, None),
                ("distill-weight", self.distill_weight, 1.0),
                ("distill-temperature", self.distill_temperature, 1.0),
            ):
                if value != default:
                    raise _without(option, value, "distill", "--distill kl (or margin-mse)")
        if self.distill == "margin-mse" and self.distill_temperature != 1:
            raise ConfigError(
                f"--distill-temperature {self.distill_temperature:g} has no meaning in --distill margin-mse.\n"
                "Leave it out, or type:  --distill kl"
            )


def _without(option: str, value: object, needed: str, what_to_type: str) -> ConfigError:
    return ConfigError(
        f"--{option} {value} says nothing without --{needed}.\nType:  {what_to_type}   too, or leave it out."
    )
