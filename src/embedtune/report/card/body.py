"""The model card: what somebody who finds the model wants to know before and while using it.

Here results become texts and tables; the order is in `card.md.j2`, the YAML head in `metadata.py`. A card is made
to be published, so it holds numbers and settings only: no text of the data, no path of this machine.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from embedtune.config import TrainConfig
from embedtune.config_file import to_dict
from embedtune.report.card.limits import limits, protocol
from embedtune.report.card.markdown import block, code, table, text
from embedtune.report.card.measured import further_table, results_notes, results_table, sizes_table
from embedtune.report.card.metadata import Part, card_data, dataset_id, hub_id, licence, shown_name
from embedtune.report.card.settings import loss_in_words, portable_toml
from embedtune.report.card.usage import CardModel, loading, usage, usage_notes
from embedtune.report.goals import goal
from embedtune.report.trainings import averaged_from, kept_members
from embedtune.report.verdict import kept_nothing, verdict, why_nothing_kept

_VERSIONS = ("torch", "transformers", "sentence-transformers", "peft")


def model_card(
    results: Mapping[str, Any],
    config: TrainConfig | Mapping[str, Any],
    model: CardModel,
    *,
    base: Mapping[str, Any] | None = None,
    part: Part = "model",
) -> str:
    """The text of a `README.md` in the Hugging Face Hub's format.

    Args:
        results: the content of `results.json`. What a run may lack is left out of the card.
        config: of the run, or its sections as `config.toml` has them.
        model: what was trained.
        base: what the base model's card says in its head; see `metadata.base_metadata`.
        part: which folder of the run the card is for.
    """
    sections = to_dict(config) if isinstance(config, TrainConfig) else config
    name = shown_name(str(results["base_model"]))
    title = f"{(name or 'An embedding model').rpartition('/')[2]}, fine-tuned for {goal(results).purpose}"
    adapter = part == "adapter"
    head = card_data(results, sections, title=title, part=part, base=base or {})
    smaller = [row for row in results.get("sizes", []) if row["dimensions"] < model.dimensions]
    body = (
        _environment()
        .get_template("card.md.j2")
        .render(
            title=text(title),
            what=_what(results, sections, model, adapter=adapter),
            goal=goal(results),
            verdict=text(verdict(results)) if "delta" in results else "",
            adapter=adapter,
            usage=usage(results, model, adapter=adapter),
            usage_notes=usage_notes(results, model, adapter=adapter),
            sizes=sizes_table(results),
            smaller="" if adapter or not smaller else loading(model, f", truncate_dim={smaller[0]['dimensions']}"),
            results=results_table(results),
            results_notes=results_notes(results),
            further=further_table(results),
            protocol=protocol(results, sections),
            limits=limits(results, model.max_length),
            training=_training(results, sections),
            config=block(portable_toml(sections), "toml") if sections else "",
            reproduce=_reproduce(results, sections),
            licence=_licence(base or {}, name),
        )
    )
    return f"---\n{head.to_yaml()}\n---\n\n{body.strip()}\n"


def _environment() -> Environment:
    return Environment(
        loader=PackageLoader("embedtune.report.card", ""),
        autoescape=False,  # Markdown is escaped value by value
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )


def _what(results: Mapping[str, Any], config: Mapping[str, Any], model: CardModel, *, adapter: bool) -> str:
    base = _base(results)
    made = f"a [Sentence Transformers](https://sbert.net) model, fine-tuned from {base}"
    made = f"a LoRA adapter in PEFT's format for {base}, trained" if adapter else made
    pairs, dataset = results.get("data", {}).get("train_pairs"), dataset_id(config.get("data", {}))
    of = goal(results)
    count = of.pairs if pairs is None else f"{pairs:,} {of.pairs}"
    source = "" if dataset is None else f" of {_link(dataset, 'datasets/')}"
    return (
        f"This is {made} with embedtune on {count}{source}, {of.aim}. It maps a "
        f"text to {model.dimensions:,} numbers; texts of like meaning lie close to each other."
    )


def _base(results: Mapping[str, Any]) -> str:
    source = str(results["base_model"])
    if (name := hub_id(source)) is not None:
        return _link(name)
    shown = shown_name(source)
    return "a model in a local folder" if shown is None else f"{code(shown)}, a model in a local folder,"


def _link(name: str, kind: str = "") -> str:
    """To a page of the Hub; a valid id needs no escapes in an address."""
    return f"[{text(name)}](https://huggingface.co/{kind}{name})"


def _training(results: Mapping[str, Any], config: Mapping[str, Any]) -> str:
    train, data, environment = (results.get(key, {}) for key in ("train", "data", "environment"))
    adapter, training = config.get("adapter", {}), config.get("training", {})
    method = results.get("method", adapter.get("method"))
    rank = None if method == "full" or "rank" not in adapter else f"{adapter['rank']}, alpha {adapter['alpha']:g}"
    trained, total = train.get("trainable_parameters"), train.get("total_parameters")
    versions = [f"{name} {environment[name]}" for name in _VERSIONS if name in environment]
    blend = results.get("blend", {}).get("used", 1)
    kept = f"none, as {why_nothing_kept(results)}" if kept_nothing(results) else _count(train.get("best_step"))
    if not kept_nothing(results) and len(members := kept_members(train)) > 1:
        steps = ", ".join(f"{member.best_step:,}" for member in members)
        kept = f"{steps}; the model is the mean of {len(members)} trainings' weights"
    first = None if kept_nothing(results) else averaged_from(train)
    facts = {
        "Pairs trained on": _count(data.get("train_pairs")),
        "Pairs to choose the checkpoint on": _count(data.get("dev_pairs")),
        "Method": method,
        "Weights while training": results.get("quantization", {}).get("what"),
        "Rank": rank,
        "Loss": loss_in_words(goal(results).loss, config.get("loss", {}), results.get("loss", {})),
        "Pairs in a batch": _count(train.get("batch_size", training.get("batch_size"))),
        "Learning rate": f"{training['lr']:g}, {training.get('schedule', '')}" if "lr" in training else None,
        "Steps": _count(train.get("steps")),
        "Step kept (by dev)": kept,
        "Weights kept": f"the mean of those of all steps from {first:,} on" if first is not None else None,
        "Parameters trained": f"{trained:,} of {total:,} ({trained / total:.2%})" if trained and total else None,
        "Share of the tuned weights": f"{blend:g}; the rest is the base's" if blend != 1 else None,
        "Precision": environment.get("precision"),
        "Seed": results.get("seed"),
        "Versions": ", ".join([f"embedtune {results['embedtune']}", *versions] if "embedtune" in results else versions),
    }
    return table(("", ""), [(key, value) for key, value in facts.items() if value not in (None, "")], numbers=False)


def _reproduce(results: Mapping[str, Any], config: Mapping[str, Any]) -> str:
    version = f" {text(results['embedtune'])}" if "embedtune" in results else ""
    local = [] if dataset_id(config.get("data", {})) else ["the pairs"]
    local += [] if hub_id(str(results["base_model"])) else ["the base model"]
    missing = f"fill in the place of {' and '.join(local)}, " if local else ""
    trusted = " --trust-remote-code" if config.get("model", {}).get("trust_remote_code") else ""
    return (
        f"To train this way again, save these settings as `config.toml`, {missing}then, with embedtune{version}: "
        f"`embedtune train --config config.toml --out run{trusted}`. One machine gives the same numbers for a seed."
    )


def _licence(base: Mapping[str, Any], name: str | None) -> str:
    of_base = "The base model" if name is None else f"The base model, {code(name)},"
    if (stated := licence(base)) is None:
        return (
            f"{of_base} has a licence of its own, which its card here did not name; look it up before you use or pass "
            "on this model, which is made of it."
        )
    return (
        f"{of_base} is under {code(stated)}, as its card says; this model is made of it. What the training pairs may "
        "be used for is for their owner to say."
    )


def _count(value: float | None) -> str | None:
    return None if value is None else f"{value:,.0f}"
