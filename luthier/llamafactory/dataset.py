"""Which rows, rendered how, and which tokens are trained: the part `dataset` of a LLaMA-Factory job.

Entered by `rows`. Files are no part of it: they are names yet.
"""

from collections.abc import Mapping
from typing import Any

from luthier.llamafactory.values import Reading, Values


def rows(reading: Reading, given: Mapping[str, Any]) -> dict[str, Any]:
    """The part `dataset` of a body: which rows, rendered how, and which tokens are trained."""
    values = reading.values
    dataset: dict[str, Any] = {"style": "llamafactory", "train_on": _trained(values)}
    if template := _template(values):
        dataset["template"] = template
    if (thoughts := _thoughts(values, given)) != "learn":
        dataset["thoughts"] = thoughts
    if (count := values.integer("max_samples")) is not None:
        dataset["max_samples"] = count
    return dataset | _held_out(reading)


def _trained(values: Values) -> str:
    everything, last = values.flag("train_on_prompt"), values.flag("mask_history")
    if everything and last:
        values.wrong("mask_history", "excludes train_on_prompt: give one of them")
    if everything:
        return "all"
    return "last" if last else "assistant"


def _template(values: Values) -> str | None:
    template = values.text("template")
    if template is not None and "{" in template:
        values.wrong("template", "expected the name of a template")
    return None if template in (None, "none") else template


def _held_out(reading: Reading) -> dict[str, Any]:
    values = reading.values
    size = values.number("val_size") or 0
    if size <= 0:
        if size < 0:
            values.wrong("val_size", f"takes a share from 0 to 1, or a number of rows, not {size}")
        return {}
    if "eval_dataset" in values:
        values.wrong("val_size", "excludes eval_dataset: give one of them")
        return {}
    if size < 1:
        return {"validation_split": float(size)}
    if size != int(size):
        values.wrong("val_size", f"takes a share below 1, or a whole number of rows, not {size}")
    return {"validation_rows": int(size)}


def _thoughts(values: Values, given: Mapping[str, Any]) -> str:
    """What becomes of thoughts; a null is a third way."""
    if given.get("enable_thinking", True) is None:
        return "give"
    return "learn" if values.flag("enable_thinking") else "remove"
