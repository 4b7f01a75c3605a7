"""Columns, format strings and texts; bad rows that are passed over; conversion to Alpaca rows."""

import json

import pytest

from luthier.datasets.convert import convert_file
from luthier.datasets.entries import resolve_entry
from luthier.datasets.examples import DatasetError, Format
from luthier.datasets.format_strings import is_format_string
from luthier.datasets.reading import Reading, read_examples
from luthier.datasets.validate import validate_file
from luthier.spec import SourceFile

USER, ANSWER = {"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}
QA = {"question": "Why?", "context": "It rains.", "answer": "Because."}
QA_COLUMNS = {"instruction": "question", "input": "context", "output": "answer"}


def source(path, **fields):
    return SourceFile(path=str(path), filename=path.name, param="file", **fields)


@pytest.fixture
def convert(tmp_path):
    """Converts a file; gives its rows."""

    def run(path, **fields):
        target = tmp_path / "converted.jsonl"
        count = convert_file(source(path, **fields), target)
        rows = [json.loads(line) for line in target.read_text(encoding="utf-8").splitlines()]
        assert count == len(rows)
        return rows

    return run


def test_columns_give_other_names_to_our_fields(write_rows):
    [(_, example)] = read_examples(write_rows(QA), Reading(columns=QA_COLUMNS))

    assert example.format is Format.ALPACA
    assert [message.content for message in example.messages] == ["Why?\nIt rains.", "Because."]


def test_a_column_that_is_not_there_is_named(write_rows):
    with pytest.raises(
        DatasetError, match=r"^Line 1: context is missing, but columns gives it for input; the row"
    ):
        list(read_examples(write_rows({"question": "x", "answer": "y"}), Reading(columns=QA_COLUMNS)))


def test_columns_that_make_no_format_are_refused(write_rows):
    report = validate_file(write_rows(QA), "rows.jsonl", reading=Reading(columns={"system": "context"}))

    assert report.errors[0].code == "schema.unknown"


def test_texts_are_one_piece_whose_special_tokens_count(write_rows):
    [(_, example)] = read_examples(write_rows({"text": "a</s>", "id": 1}))

    assert (example.format, example.messages, example.text) == (Format.TEXT, (), (("a</s>", True),))


def test_a_format_string_tells_its_own_text_from_that_of_columns(write_rows):
    template = "### {{Q}}: {question}{context}\n### A: {answer}{eos_token}"

    [(_, example)] = read_examples(write_rows(QA | {"context": None}), Reading(format_string=template))

    assert example.text == (
        ("### {Q}: ", True),
        ("Why?", False),
        ("\n### A: ", True),
        ("Because.", False),
        ("{eos_token}", True),
    )


def test_a_format_string_may_use_our_names_for_the_users_columns(write_rows):
    reading = Reading(columns={"instruction": "question"}, format_string="{instruction} {answer}")

    [(_, example)] = read_examples(write_rows(QA), reading)

    assert example.text == (("Why?", False), (" ", True), ("Because.", False))


@pytest.mark.parametrize(
    ("row", "code"),
    [
        ({"a": "x"}, "template.column_missing"),
        ({"a": "x", "b": 7}, "template.column_type"),
        ({"a": " ", "b": ""}, "text.blank"),
    ],
)
def test_rows_that_a_format_string_cannot_take_are_errors(write_rows, row, code):
    report = validate_file(write_rows(row), "rows.jsonl", reading=Reading(format_string="{a}{b}"))

    assert code in report.error_counts


@pytest.mark.parametrize(
    ("template", "expected"),
    [("chatml", False), ("{question}", True), ("{{question}}", False), ("x{eos_token}", False), ("{", False)],
)
def test_a_template_with_a_column_is_a_format_string(template, expected):
    assert is_format_string(template) is expected


def test_bad_rows_are_told_and_passed_over_when_asked_for(write_rows):
    path = write_rows(
        {"prompt": "a", "completion": "b"}, {"prompt": 1}, b"broken", {"prompt": "c", "completion": "d"}
    )
    told = []

    lines = [line for line, _ in read_examples(path, on_bad_row=told.append)]

    assert lines == [1, 4]
    assert [(issue.line, issue.code) for issue in told] == [(2, "pc.field_type"), (3, "json.syntax")]


def test_only_the_first_rows_are_read(write_rows):
    path = write_rows(*[{"prompt": "a", "completion": "b"}] * 5, b"broken")

    assert [line for line, _ in read_examples(path, Reading(max_rows=3))] == [1, 2, 3]
    assert validate_file(path, "rows.jsonl", reading=Reading(max_rows=5)).valid


def test_a_question_with_context_becomes_an_alpaca_row(write_rows, convert):
    rows = convert(write_rows(QA, QA | {"context": ""}), columns=QA_COLUMNS)

    assert rows == [
        {"instruction": "Why?", "input": "It rains.", "output": "Because."},
        {"instruction": "Why?", "input": "", "output": "Because."},
    ]


def test_a_conversation_becomes_an_instruction_with_its_history(write_rows, convert):
    roles = ["system", "user", "assistant", "user", "assistant"]
    row = {"messages": [{"role": role, "content": f"\u00e9{number}"} for number, role in enumerate(roles)]}

    assert convert(write_rows(row)) == [
        {"instruction": "\u00e93", "input": "", "output": "\u00e94", "system": "\u00e90"}
        | {"history": [["\u00e91", "\u00e92"]]}
    ]


def test_a_registered_entry_names_the_columns_to_convert(write_rows, convert):
    columns = {"prompt": "question", "query": "context", "response": "answer"}
    entry, _ = resolve_entry({"file_name": "x", "columns": columns}, "qa")

    assert convert(write_rows(QA), entry=entry) == [
        {"instruction": "Why?", "input": "It rains.", "output": "Because."}
    ]


@pytest.mark.parametrize(
    ("row", "says"),
    [
        ({"text": "a"}, "a plain text has no instruction"),
        ({"messages": [USER, ANSWER | {"weight": 0}]}, "weight 0"),
        ({"messages": [USER, ANSWER], "tools": [{}]}, "tools"),
        ({"messages": [USER, ANSWER, ANSWER]}, "not pairs"),
        ({"prompt": "a"}, "completion is missing"),
    ],
)
def test_what_alpaca_rows_cannot_say_is_refused_and_leaves_nothing(write_rows, tmp_path, row, says):
    path = write_rows(row)

    with pytest.raises(DatasetError, match=f"^Line 1: .*{says}"):
        convert_file(source(path), tmp_path / "converted.jsonl")

    assert list(tmp_path.iterdir()) == [path]
