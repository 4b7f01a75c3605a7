"""Entries of LLaMA-Factory's dataset_info.json: what they mean, what they refuse, what they warn about.

Expected examples follow that system's documented behaviour, worked out by hand.
"""

import json

import pytest

from luthier.datasets.entries import resolve_entry
from luthier.datasets.examples import DatasetError, Format
from luthier.datasets.reading import Reading, read_examples
from luthier.datasets.validate import validate_file

OPENAI_TAGS = {
    "role_tag": "role",
    "content_tag": "content",
    "user_tag": "user",
    "assistant_tag": "assistant",
    "system_tag": "system",
    "observation_tag": "tool",
    "function_tag": "function",
}


def resolve(**raw):
    return resolve_entry({"file_name": "rows.json"} | raw, "mine")


@pytest.fixture
def read(write_rows):
    """The one example of a row, read through an entry."""

    def read_row(row, **raw):
        entry, _ = resolve(**raw)
        [(_, example)] = read_examples(write_rows(row), Reading(entry=entry))
        return example

    return read_row


def turns(example):
    return [(message.role, message.content) for message in example.messages]


def test_an_alpaca_entry_without_columns_has_the_default_ones(read):
    row = {
        "instruction": "Solve the math problem.",
        "input": "3 + 4",
        "output": "The answer is 7.",
        "system": "s",
    }

    assert turns(read(row)) == [("user", "Solve the math problem.\n3 + 4"), ("assistant", "The answer is 7.")]


def test_columns_that_are_named_are_all_that_is_read(read):
    columns = {"prompt": "q", "response": "a", "system": "s", "history": "h"}
    row = {"q": "Q", "input": "unread", "a": "A", "s": "S", "h": [["x", "y"]]}

    assert turns(read(row, columns=columns)) == [
        ("system", "S"),
        ("user", "x"),
        ("assistant", "y"),
        ("user", "Q"),
        ("assistant", "A"),
    ]


def test_blank_answers_are_taken_as_llamafactory_takes_them(read):
    assert turns(read({"instruction": "Q", "input": "", "output": ""})) == [("user", "Q"), ("assistant", "")]


def test_an_entry_with_a_prompt_alone_reads_plain_text(read):
    example = read({"text": "some <s> text"}, columns={"prompt": "text"})

    assert (example.format, example.text) == (Format.TEXT, (("some <s> text", True),))


def test_sharegpt_takes_a_leading_system_turn_before_the_system_column(read):
    row = {
        "conversations": [
            {"from": "system", "value": "first"},
            {"from": "human", "value": "q"},
            {"from": "function_call", "value": '{"name": "f", "arguments": {"x": 1}}'},
            {"from": "observation", "value": "2"},
            {"from": "gpt", "value": "a"},
        ],
        "sys": "second",
    }
    example = read(row, formatting="sharegpt", columns={"messages": "conversations", "system": "sys"})

    assert turns(example) == [
        ("system", "first"),
        ("user", "q"),
        ("assistant", None),
        ("tool", "2"),
        ("assistant", "a"),
    ]
    assert example.messages[2].tool_calls[0]["function"] == {"name": "f", "arguments": {"x": 1}}


def test_openai_joins_answers_of_tools_and_adds_no_note_on_thinking(read):
    call = {"id": "1", "type": "function", "function": {"name": "f", "arguments": "{}"}}
    row = {
        "messages": [
            {"role": "user", "content": "q"},
            {"role": "assistant", "content": "", "tool_calls": [call, call]},
            {"role": "tool", "content": "1"},
            {"role": "tool", "content": "2"},
            {"role": "assistant", "content": "a"},
        ]
    }
    example = read(row, formatting="openai", columns={"messages": "messages"}, tags=OPENAI_TAGS)

    assert turns(example) == [
        ("user", "q"),
        ("assistant", None),
        ("tool", "1\n</tool_response>\n<tool_response>\n2"),
        ("assistant", "a"),
    ]


def talk(*roles):
    return {"conversations": [{"from": role, "value": "x"} for role in roles]}


@pytest.mark.parametrize(
    ("row", "code"),
    [
        (talk("gpt", "human"), "entry.alternation"),
        (talk("human", "human"), "entry.alternation"),
        (talk("human", "gpt", "human"), "entry.turn_count"),
        (talk("human", "bot"), "entry.role_invalid"),
        (talk("human", "system"), "entry.alternation"),
        ({"conversations": []}, "sharegpt.conversations_empty"),
        ({"messages": []}, "entry.column_missing"),
    ],
)
def test_rows_that_llamafactory_would_drop_are_errors(write_rows, row, code):
    entry, _ = resolve(formatting="sharegpt")

    report = validate_file(write_rows(row), "rows.jsonl", reading=Reading(entry=entry))

    assert code in report.error_counts


@pytest.mark.parametrize(
    ("raw", "says"),
    [
        ({"hf_hub_url": "a/b"}, "hf_hub_url is refused"),
        ({"script_url": "x"}, "scripts are not run"),
        ({"cloud_file_name": "s3://x"}, "cloud_file_name is refused"),
        ({"folder": "x"}, "folder is refused"),
        ({"subset": "x"}, "subset is refused"),
        ({"split": "test"}, "split 'test' is refused"),
        ({"ranking": True}, "ranking is refused"),
        ({"columns": {"prompt": "x", "images": "i"}}, "columns.images is refused"),
        ({"columns": {"prompt": "x", "kto_tag": "label"}}, "columns.kto_tag is refused"),
        ({"columns": {"promt": "x"}}, "columns has a key that is not known: promt"),
        ({"columns": {"prompt": 7}}, "columns.prompt is a number"),
        ({"columns": {"response": "x"}}, "columns names no prompt"),
        ({"formatting": "sharegpt", "columns": {"system": "x"}}, "columns names no messages"),
        ({"formatting": "sharegpt", "tags": {"role_tag": "r"}}, "tags names no content_tag and no user_tag"),
        ({"formatting": "chatml"}, "formatting is 'chatml'; use alpaca"),
        ({"num_samples": 0}, "num_samples is a number"),
        ({"num_samples": 10**12}, "from 1 to 10,000,000"),
        ({"surprise": 1}, "keys that are not known: surprise"),
    ],
)
def test_what_cannot_be_honoured_is_refused_by_name(raw, says):
    with pytest.raises(DatasetError, match="'mine'") as caught:
        resolve(**raw)

    assert says in str(caught.value)


@pytest.mark.parametrize(
    ("raw", "codes"),
    [
        ({}, set()),
        ({"formatting": "sharegpt"}, set()),
        (
            {"columns": {"prompt": "q", "response": "a"}},
            {"entry.no_query", "entry.no_system", "entry.no_tools", "entry.no_history"},
        ),
        (
            {"formatting": "sharegpt", "tags": dict.fromkeys(list(OPENAI_TAGS)[:4], "x")},
            {"entry.no_system_tag", "entry.no_observation_tag", "entry.no_function_tag"},
        ),
        ({"tags": OPENAI_TAGS}, {"entry.tags_unused"}),
        ({"formatting": "openai", "tags": OPENAI_TAGS}, {"entry.no_thinking_note"}),
    ],
)
def test_traps_are_warned_about(raw, codes):
    _, warnings = resolve(**raw)

    assert {warning.code for warning in warnings} == codes


def test_a_warning_says_what_follows():
    _, warnings = resolve(columns={"prompt": "q", "response": "a"})

    assert warnings[0].message == (
        "The dataset_info entry 'mine': columns names no query, so the column input is not read, should the "
        "rows have one"
    )


@pytest.mark.parametrize(("size", "max_rows", "count"), [(3, None, 3), (25, None, 25), (25, 7, 7)])
def test_num_samples_draws_rows_again_only_when_all_were_drawn(write_rows, size, max_rows, count):
    path = write_rows(*({"instruction": str(number), "input": "", "output": "a"} for number in range(10)))
    entry, _ = resolve(num_samples=size)

    drawn = [line for line, _ in read_examples(path, Reading(entry=entry, max_rows=max_rows))]

    assert len(drawn) == count
    assert max_rows or len(set(drawn)) == min(count, 10)
    assert drawn == [line for line, _ in read_examples(path, Reading(entry=entry, max_rows=max_rows))]


def test_the_real_file_reads_the_same_through_its_entry(real_file):
    rows = [json.loads(line) for line in real_file.read_text().splitlines()]
    formatting = "sharegpt" if "conversations" in rows[0] else "alpaca"
    entry, _ = resolve(formatting=formatting)

    by_entry = [turns(example) for _, example in read_examples(real_file, Reading(entry=entry))]

    assert by_entry == [turns(example) for _, example in read_examples(real_file)]
