"""What the child process does with files: a function for each kind of spec, each giving the run's result.

`do_work` is the one way in. Files that lie in the run folder are named by their path in it. A mistake in a
user's file becomes a `JobFailure` that names the file.
"""

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import assert_never

from luthier.datasets.convert import convert_file
from luthier.datasets.examples import DatasetError
from luthier.datasets.measure import TokenReport, measure
from luthier.datasets.prepare import PreparedFile, PrepareStats, prepare_file, truncation_rule
from luthier.datasets.preview import preview_rows
from luthier.datasets.reading import PLAIN_RULES, reading_of
from luthier.datasets.report import ValidationReport
from luthier.datasets.row_tally import LEAKAGE
from luthier.datasets.template_choice import ChosenTemplate, disagreements, resolve_template
from luthier.datasets.tokenizer import ModelTokenizer, load_tokenizer
from luthier.datasets.validate import failure_message, validate_file
from luthier.errors import ExitCode, JobFailure
from luthier.events import EventWriter, PhaseChanged, ProgressMade, WarningRaised
from luthier.spec import (
    ConvertSpec,
    DatasetRequest,
    DatasetSpec,
    MeasureSpec,
    ModelView,
    PreparedData,
    PreparedSplit,
    PrepareSpec,
    PreviewSpec,
    SourceFile,
    ValidateSpec,
)
from luthier.status import Phase

Result = dict[str, object]

_PROGRESS_SECONDS = 1.0
_VALIDATION = "validation"


def do_work(spec: DatasetSpec, folder: Path, events: EventWriter) -> Result:
    """Do what a spec asks for, and give the result of the run.

    Raises:
        JobFailure: a file or the model cannot be used.
        OSError: a file cannot be read or written.
    """
    match spec:
        case ValidateSpec():
            return _validate(spec, events)
        case PrepareSpec():
            return _prepare(spec, folder, events)
        case PreviewSpec():
            return _preview(spec)
        case MeasureSpec():
            return _measure(spec, events)
        case ConvertSpec():
            return _convert(spec, folder, events)
        case unknown:
            assert_never(unknown)


def _validate(spec: ValidateSpec, events: EventWriter) -> Result:
    events.write(PhaseChanged(phase=Phase.VALIDATING_FILES))
    progress = _Progress(events, "bytes")
    rules = spec.view.dataset if spec.view else PLAIN_RULES
    report = _report(spec.file, rules, spec.against, progress)
    told = report.model_dump(mode="json")
    if spec.view is not None and report.row_count > 0:
        events.write(PhaseChanged(phase=Phase.TOKENIZING))
        told["tokens"] = _tokens(spec.file, spec.view, report, events)
    return {"report": told, "message": None if report.valid else failure_message(report)}


def _report(
    source: SourceFile, rules: DatasetRequest, against: SourceFile | None, progress: "_Progress"
) -> ValidationReport:
    """What is in a file and, where it is held against a validation file, what it should not have of that."""
    other = None if against is None else (_existing(against), reading_of(against, rules))
    path, reading = _existing(source), reading_of(source, rules)
    return validate_file(path, source.filename, progress.tell, reading=reading, against=other)


def _tokens(
    source: SourceFile, view: ModelView, report: ValidationReport, events: EventWriter
) -> Result | None:
    """What a model makes of the rows; None where the report tells why they cannot be read to their end."""
    with _told_of(source):
        try:
            return _counted(source, view, None, events).model_dump(mode="json")
        except DatasetError as error:
            if error.issue.code in report.error_counts:
                return None
            raise


def _measure(spec: MeasureSpec, events: EventWriter) -> Result:
    events.write(PhaseChanged(phase=Phase.TOKENIZING))
    reports = [_measured(source, spec.view, spec.max_rows, events) for source in spec.files]
    return {"files": [report.model_dump(mode="json") for report in reports]}


def _measured(source: SourceFile, view: ModelView, max_rows: int | None, events: EventWriter) -> TokenReport:
    _existing(source)
    with _told_of(source):
        return _counted(source, view, max_rows, events)


def _counted(source: SourceFile, view: ModelView, max_rows: int | None, events: EventWriter) -> TokenReport:
    return measure(
        source,
        load_tokenizer(Path(view.model.path)),
        rules=view.dataset,
        max_seq_length=view.max_seq_length,
        max_rows=max_rows,
        on_progress=_Progress(events, "rows").tell,
    )


def _preview(spec: PreviewSpec) -> Result:
    view = spec.view
    tokenizer = load_tokenizer(Path(view.model.path))
    _existing(spec.file)
    with _told_of(spec.file):
        rows = preview_rows(
            spec.file,
            tokenizer,
            rules=view.dataset,
            max_seq_length=view.max_seq_length,
            offset=spec.offset,
            count=spec.count,
        )
    return {"rows": [row.model_dump(mode="json") for row in rows]}


def _convert(spec: ConvertSpec, folder: Path, events: EventWriter) -> Result:
    (folder / "artifacts").mkdir(exist_ok=True)
    _existing(spec.file)
    with _told_of(spec.file):
        count = convert_file(spec.file, folder / "artifacts" / "rows.jsonl", _Progress(events, "rows").tell)
    return {"row_count": count}


def _prepare(spec: PrepareSpec, folder: Path, events: EventWriter) -> Result:
    events.write(PhaseChanged(phase=Phase.TOKENIZING))
    tokenizer = load_tokenizer(Path(spec.model.path))
    with _told_of(spec.train[0]):
        chosen = resolve_template(spec.dataset.template, tokenizer, spec.dataset.style)
    for warning in _template_warnings(chosen, tokenizer):
        events.write(warning)
    (folder / "artifacts").mkdir(exist_ok=True)
    sources = {f"train-{number:03d}": source for number, source in enumerate(spec.train)}
    if spec.validation is not None:
        sources[_VALIDATION] = spec.validation
    splits: dict[str, PreparedSplit] = {}
    stats: dict[str, object] = {}
    for name, source in sources.items():
        if source.prepared is not None:
            splits[name] = source.prepared.model_copy(update={"weight": source.weight})
            continue
        target = folder / "artifacts" / f"{name}.parquet"
        prepared = _prepare_source(spec, source, target, tokenizer, events)
        splits[name] = prepared.split.model_copy(update={"path": str(target.relative_to(folder))})
        stats[name] = asdict(prepared.stats)
    if spec.validation is not None:
        for warning in _leaks(spec.train, spec.validation, spec.dataset, events):
            events.write(warning)
    data = PreparedData(
        train=tuple(split for name, split in splits.items() if name != _VALIDATION),
        validation=splits.get(_VALIDATION),
        chat_template=chosen.replaces_own,
    )
    return data.model_dump(mode="json") | {"stats": stats}


def _prepare_source(
    spec: PrepareSpec, source: SourceFile, target: Path, tokenizer: ModelTokenizer, events: EventWriter
) -> PreparedFile:
    _existing(source)
    with _told_of(source):
        prepared = prepare_file(
            source,
            target,
            tokenizer,
            rules=spec.dataset,
            max_seq_length=spec.max_seq_length,
            on_progress=_Progress(events, "rows").tell,
        )
    for warning in _warnings(prepared.stats, source, spec.dataset, spec.max_seq_length):
        events.write(warning)
    return prepared


def _leaks(
    train: Sequence[SourceFile], validation: SourceFile, rules: DatasetRequest, events: EventWriter
) -> Iterator[WarningRaised]:
    """Of each training file, how many of its rows the validation file has too.

    It concerns two files, so it is found anew for every job, whether or not their rows were prepared before.
    """
    for source in train:
        report = _report(source, rules, validation, _Progress(events, "bytes"))
        for leak in (warning for warning in report.warnings if warning.code == LEAKAGE):
            lines = ", ".join(map(str, leak.lines))
            yield WarningRaised(
                code=LEAKAGE,
                message=f"{source.filename} (lines {lines}{' ...' if leak.count > len(leak.lines) else ''}): "
                f"{leak.message}",
                data={"param": source.param, "row_count": leak.count, "lines": leak.lines},
            )


@contextmanager
def _told_of(source: SourceFile) -> Iterator[None]:
    """What is wrong with the rows of a file is told as a failure that names it."""
    try:
        yield
    except DatasetError as error:
        # Some mistakes lie in a setting and not in the file.
        is_setting = error.issue.loc.startswith("dataset.")
        code = "invalid_spec" if is_setting else _failure_code(source)
        param = error.issue.loc if is_setting else source.param
        raise JobFailure(str(error), code, ExitCode.BAD_DATA, param) from error


def _existing(source: SourceFile) -> Path:
    path = Path(source.path)
    if not path.is_file():
        text = f"The file {source.filename} is not on this machine: upload it again"
        raise JobFailure(text, _failure_code(source), ExitCode.MISSING, source.param)
    return path


def _failure_code(source: SourceFile) -> str:
    return "invalid_validation_file" if source.param == "validation_file" else "invalid_training_file"


def _template_warnings(chosen: ChosenTemplate, tokenizer: ModelTokenizer) -> Iterator[WarningRaised]:
    for text in disagreements(chosen, tokenizer):
        yield WarningRaised(
            code="template_mismatch",
            message=f"{text[0].upper()}{text[1:]}",
            data={"param": "dataset.template"},
        )


def _warnings(
    stats: PrepareStats, source: SourceFile, rules: DatasetRequest, limit: int
) -> Iterator[WarningRaised]:
    """What happened to rows without being asked for row by row."""
    rule = truncation_rule(rules)
    total = stats.read_row_count
    counted = {
        "rows_truncated": (stats.truncated_row_count, total, f"were cut at {limit} tokens ({rule})"),
        "answers_lost": (stats.lost_answer_count, stats.answer_count, "lost tokens to that cut"),
        "rows_dropped_overlength": (stats.overlength_row_count, total, f"were dropped: over {limit} tokens"),
        "rows_dropped_untrained": (
            stats.untrained_row_count,
            total,
            "were dropped: no token in them to learn",
        ),
        "rows_dropped_bad": (
            stats.bad_row_count,
            total + stats.bad_row_count,
            f"were dropped: bad. {' '.join(stats.bad_rows)}",
        ),
    }
    for code, (count, of, what) in counted.items():
        if count:
            things = "answers" if code == "answers_lost" else "rows"
            text = f"{count} of {of} {things} of {source.filename} {what}"
            data = {"param": source.param, "filename": source.filename, "row_count": count}
            yield WarningRaised(code=code, message=text, data=data)


class _Progress:
    """Tells how far the work has come, at most once a second."""

    def __init__(self, events: EventWriter, unit: str) -> None:
        self._events, self._unit = events, unit
        self._told_at = time.monotonic()

    def tell(self, done: int, total: int | None = None) -> None:
        if time.monotonic() - self._told_at >= _PROGRESS_SECONDS:
            self._events.write(ProgressMade(done=done, total=total, unit=self._unit))
            self._told_at = time.monotonic()
