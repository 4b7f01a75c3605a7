"""A LLaMA-Factory job becomes the body of a job here, or a list of everything that stands in the way.

`convert` knows no file and no server: it leaves the names of the datasets, which the caller resolves, and
`Converted.with_files` puts what they are into the body.
"""

import difflib
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pydantic import ValidationError

from luthier.errors import LuthierError, printable
from luthier.llamafactory import dataset, settings
from luthier.llamafactory.rhythm import rhythm
from luthier.llamafactory.table import ARGUMENTS, Treatment
from luthier.llamafactory.values import Problem, Reading, Values
from luthier.spec import JobRequest, field_path

# Any of these at the top says that a job is of that kind.
MARKS = ("model_name_or_path", "stage", "finetuning_type")
# Names of ours that are none of its arguments.
_OURS = frozenset(JobRequest.model_fields) - set(ARGUMENTS)
_MAX_PROBLEMS = 100
_MAX_SUGGESTIONS = 16
_MAX_NAME_CHARACTERS = 64
_MAX_SUFFIX_CHARACTERS = 64
_TUNED = "ft:"
_PLACEHOLDER = "file-"


@dataclass(frozen=True)
class Converted:
    """A job whose datasets are names yet.

    Attributes:
        request: the body without its files.
        notes: what is done otherwise than the writer may think, a line each.
        dataset_dir: where that system looks for dataset_info.json.
        output_dir: where that system leaves its results; None where it is not given.
    """

    request: dict[str, Any]
    notes: list[str]
    datasets: list[str]
    eval_datasets: list[str]
    dataset_dir: str
    output_dir: str | None

    def with_files(self, training: Sequence[str], validation: str | None = None) -> dict[str, Any]:
        """The whole body.

        Args:
            training: ids or paths, one for each name of `datasets`; one that comes twice counts twice.
        """
        counts = Counter(training)
        body = {**self.request, "training_file": training[0]}
        if len(counts) > 1 or counts[training[0]] > 1:
            files = [{"id": name, "weight": float(count)} for name, count in counts.items()]
            body["dataset"] = {**body["dataset"], "files": files}
        if validation is not None:
            body["validation_file"] = validation
        return body


def is_llamafactory(mapping: Mapping[str, Any]) -> bool:
    """Whether a body is one of LLaMA-Factory's; of ours, if not.

    Raises:
        LuthierError: it has names of both.
    """
    marks = [name for name in MARKS if name in mapping]
    ours = sorted(_OURS & set(mapping))
    if marks and ours:
        raise LuthierError(
            f"The job mixes two forms: {', '.join(map(repr, marks))} of LLaMA-Factory and "
            f"{', '.join(map(repr, ours))} of Luthier. Write it in one of them",
            "invalid_value",
            ours[0],
        )
    return bool(marks)


def convert(given: Mapping[str, Any]) -> Converted:
    """The job that the arguments describe.

    Raises:
        LuthierError: arguments are unknown, refused or wrong; it names every one of them, with the reason.
    """
    values = Values({name: value for name, value in given.items() if name in ARGUMENTS})
    values.problems.extend(_unknown(given))
    values.problems.extend(_refused(given))
    reading = Reading(values)
    datasets, eval_datasets = _datasets(values)
    request = _request(reading, given, has_validation=bool(eval_datasets))
    if not values.problems:
        values.problems.extend(_out_of_range(request, given))
    if values.problems:
        raise _error(values.problems)
    return Converted(
        request=request,
        notes=[*reading.notes, *_without_effect(given)],
        datasets=datasets,
        eval_datasets=eval_datasets,
        dataset_dir=values.text("dataset_dir") or "data",
        output_dir=values.text("output_dir"),
    )


def _unknown(given: Mapping[str, Any]) -> list[Problem]:
    found = []
    for number, name in enumerate(name for name in given if name not in ARGUMENTS):
        # Looking for one takes milliseconds, which a stranger could ask for by the thousand.
        near = ARGUMENTS if number < _MAX_SUGGESTIONS else ()
        close = difflib.get_close_matches(name[:_MAX_NAME_CHARACTERS], near, n=1)
        hint = f"; did you mean '{close[0]}'?" if close else ""
        found.append(Problem(name, f"is no argument of LLaMA-Factory{hint}", "unknown"))
    return found


def _refused(given: Mapping[str, Any]) -> list[Problem]:
    return [
        Problem(name, argument.note, "refused")
        for name, argument in ARGUMENTS.items()
        if name in given
        and argument.treatment is Treatment.REFUSED
        and not argument.asks_for_nothing(given[name])
    ]


def _datasets(values: Values) -> tuple[list[str], list[str]]:
    datasets, eval_datasets = values.names("dataset"), values.names("eval_dataset")
    if not datasets and not values.problems:
        values.wrong("dataset", "is required: the names of one or more datasets", "missing")
    if len(eval_datasets) > 1:
        values.wrong("eval_dataset", "takes one name: join the validation rows in one file", "refused")
    return datasets, eval_datasets


def _request(reading: Reading, given: Mapping[str, Any], *, has_validation: bool) -> dict[str, Any]:
    """The body, of values that may still be out of range."""
    hyperparameters, length = settings.length(reading)
    rows = dataset.rows(reading, given)
    holds_out = "validation_split" in rows or "validation_rows" in rows
    return {
        "model": _model(reading.values),
        "seed": reading.values.integer("seed"),
        "hyperparameters": hyperparameters,
        "qlora": settings.method(reading)
        | settings.schedule(reading)
        | length
        | settings.memory(reading)
        | rhythm(reading, has_validation=has_validation or holds_out),
        "dataset": rows,
    } | _naming(reading.values)


def _model(values: Values) -> str | None:
    adapters = values.names("adapter_name_or_path")
    if len(adapters) > 1 or (adapters and not adapters[0].startswith(_TUNED)):
        text = "takes the name of one model that was tuned here, such as ft:...; a folder is not read"
        values.wrong("adapter_name_or_path", text, "refused")
    name = values.text("model_name_or_path")
    if name is None:
        values.wrong("model_name_or_path", "is required: the base model", "missing")
    return adapters[0] if adapters else name


def _naming(values: Values) -> dict[str, Any]:
    """Output folder and run name, as far as a job has room for them."""
    metadata = {name: text for name in ("output_dir", "run_name") if (text := values.text(name))}
    words = re.sub(r"[^A-Za-z0-9_.-]+", "-", metadata.get("output_dir", ""))
    suffix = words[-_MAX_SUFFIX_CHARACTERS:].strip("-._")
    return ({"metadata": metadata} if metadata else {}) | ({"suffix": suffix} if suffix else {})


def _out_of_range(request: dict[str, Any], given: Mapping[str, Any]) -> list[Problem]:
    """What our own rules find in the body, told by the names that it was written with."""
    try:
        JobRequest.model_validate({**request, "training_file": _PLACEHOLDER})
    except ValidationError as error:
        return [
            Problem(_written(field_path(each["loc"]), given), _plain(each["msg"]))
            for each in error.errors(include_url=False, include_input=False)
        ]
    return []


def _plain(message: str) -> str:
    text = message.removeprefix("Value error, ")
    return text[:1].lower() + text[1:]


def _written(path: str, given: Mapping[str, Any]) -> str:
    """The argument that a field of ours comes from; the field where there is none."""
    names = [
        name
        for name, each in ARGUMENTS.items()
        if any(f"{path}.".startswith(f"{field}.") for field in each.fields)
    ]
    return next((name for name in names if name in given), next(iter(names), path or "the job"))


def _without_effect(given: Mapping[str, Any]) -> list[str]:
    return [
        f"{name} is without effect: {argument.note}"
        for name, argument in ARGUMENTS.items()
        if name in given
        and argument.treatment is Treatment.WITHOUT_EFFECT
        and not argument.asks_for_nothing(given[name])
    ]


def _error(problems: Sequence[Problem]) -> LuthierError:
    """All problems in one error, the first one's kind as its code."""
    codes = {"unknown": "unknown_parameter", "missing": "missing_required_parameter"}
    lines = [
        f"'{printable(each.name, _MAX_NAME_CHARACTERS)}': {each.text}" for each in problems[:_MAX_PROBLEMS]
    ]
    more = f"; and {len(problems) - _MAX_PROBLEMS} more" if len(problems) > _MAX_PROBLEMS else ""
    details = [
        {
            "loc": printable(each.name, _MAX_NAME_CHARACTERS),
            "code": codes.get(each.kind, "invalid_value"),
            "message": line,
        }
        for each, line in zip(problems, lines, strict=False)
    ]
    count = "An argument of this LLaMA-Factory job stops it"
    if len(problems) > 1:
        count = f"{len(problems)} arguments of this LLaMA-Factory job stop it"
    first = details[0]
    return LuthierError(f"{count}: {'; '.join(lines)}{more}", first["code"], first["loc"], details)
