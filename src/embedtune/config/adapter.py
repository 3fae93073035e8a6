"""What of the model is trained."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Literal

from embedtune.checks import require, require_choice, require_usable
from embedtune.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class AdapterConfig:
    """What is trained."""

    method: Literal["lora", "qlora", "full"] = "lora"
    """A LoRA adapter; one on a base in 4 bits (NF4); or the encoder's own weights."""
    rank: int = 16
    """Rank of the adapter's update."""
    alpha: float = 32.0
    """The update is scaled by alpha / rank."""
    dropout: float = 0.0
    """Probability of dropping an input feature of the adapter; the base's own dropout is off."""
    rslora: bool = False
    """Scale the update by alpha / sqrt(rank) instead (rsLoRA)."""
    dora: bool = False
    """Train the size of each output's weights apart from their direction (DoRA); slower."""
    init: Literal["default", "gaussian", "pissa", "loftq"] = "default"
    """How the adapter starts: without effect, likewise with Gaussian noise, from the weights' main directions (PiSSA),
    or as a correction of the 4-bit error (LoftQ, for qlora)."""
    target_modules: tuple[str, ...] = ("all-linear",)
    """Modules that get an adapter: all-linear, ends of names such as query, or regular expressions for whole names."""
    exclude_modules: tuple[str, ...] = ()
    """Modules among those that get none, named in the same way."""
    layers_to_transform: tuple[int, ...] = ()
    """Transformer layers that are trained, counted from 0; all if not given."""
    last_layers: int | None = None
    """Train the last so many transformer layers only."""
    bias: Literal["none", "all", "lora_only"] = "none"
    """Biases that are trained too: all of the encoder's, or those of the layers with an adapter."""
    modules_to_save: tuple[str, ...] = ()
    """Modules that are trained in full beside the adapter and saved with it, such as LayerNorm."""
    start_adapter: str | None = None
    """Folder of a LoRA adapter in PEFT's format to go on training; its own settings are kept."""
    merge_into: Literal["quantised", "original"] = "quantised"
    """Weights that a qlora adapter is merged into: those it was trained on, or the original ones."""

    @property
    def trains_weights(self) -> bool:
        """Whether parameters of the base itself are trained."""
        return self.method == "full" or self.bias != "none" or bool(self.modules_to_save)

    @property
    def starts_as_base(self) -> bool:
        """Whether the model embeds as the base does until the first step: no weights in 4 bits, an adapter of zero."""
        return self.method != "qlora" and self.init in ("default", "gaussian") and self.start_adapter is None

    def __post_init__(self) -> None:
        require_usable(self)
        for name in ("method", "init", "bias", "merge_into"):
            require_choice(self, name)
        require(self.rank >= 1, "rank", self.rank, "1 or more")
        require(self.alpha > 0, "alpha", self.alpha, "a number above 0")
        require(0 <= self.dropout < 1, "dropout", self.dropout, "a number from 0 up to, but not, 1")
        require(bool(self.target_modules), "target-modules", "empty", "all-linear or names of modules")
        require(
            all(n >= 0 for n in self.layers_to_transform), "layers-to-transform", self.layers_to_transform, "0 or more"
        )
        if self.last_layers is not None:
            require(self.last_layers >= 1, "last-layers", self.last_layers, "1 or more")
        self._refuse_contradictions()

    def _refuse_contradictions(self) -> None:
        shaping = "rank alpha dropout rslora dora init target_modules exclude_modules bias modules_to_save"
        shaped = tuple(shaping.split())
        if self.method == "full":
            self._refuse((*shaped, "start_adapter"), "--method full trains the weights themselves, without an adapter")
        if self.start_adapter is not None:
            layers = ("layers_to_transform", "last_layers")
            self._refuse((*shaped, *layers), "--start-adapter goes on with an adapter as it is")
        if self.method != "qlora":
            self._refuse(("merge_into",), f"--method {self.method} has no 4-bit weights to merge into")
        if self.last_layers is not None:
            self._refuse(("layers_to_transform",), "--last-layers says which layers are trained")
        if self.dora and self.init in ("pissa", "loftq"):
            raise ConfigError(f"--init {self.init} and --dora both redefine the weights.\nLeave one of them out.")
        if self.init == "loftq" and self.method != "qlora":
            raise ConfigError(
                f"--init loftq corrects the error of 4-bit weights, and --method {self.method} has none.\n"
                "Type:  --method qlora --init loftq, or another --init."
            )
        if self.init == "pissa" and self.method == "qlora":
            raise ConfigError(
                "--init pissa takes the main directions out of the weights, which --method qlora holds in 4 bits.\n"
                "Type:  --method qlora --init loftq, or --method lora --init pissa."
            )

    def _refuse(self, names: tuple[str, ...], reason: str) -> None:
        """Raise if one of these options has another value than it has by default."""
        for option in dataclasses.fields(self):
            if option.name in names and getattr(self, option.name) != option.default:
                raise ConfigError(f"{reason}; --{option.name.replace('_', '-')} would have no effect. Leave it out.")
