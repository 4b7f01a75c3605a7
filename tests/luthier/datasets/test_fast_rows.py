"""The sieve lets through what the exact parser would pass in silence, and nothing else."""

import json

import pytest

from luthier.datasets import validate
from luthier.datasets.examples import Format
from luthier.datasets.fast_rows import Sieve
from luthier.datasets.formats import MAX_MESSAGES

CHAT = {"messages": [{"role": "user", "content": 'say "hi"\n\u00e9'}, {"role": "assistant", "content": "hi"}]}
TALK = {"conversations": [{"from": "human", "value": "a"}, {"from": "gpt", "value": "b"}]}
ALPACA = {"instruction": "a", "input": "", "output": "b"}
PAIR = {"prompt": "a", "completion": "b"}


def sift(format_, *rows):
    return Sieve(format_).sift([row if isinstance(row, bytes) else json.dumps(row).encode() for row in rows])


@pytest.mark.parametrize(
    ("format_", "row"),
    [
        (Format.CHAT, CHAT),
        (Format.CHAT, json.dumps(CHAT, ensure_ascii=False).encode() + b"\r"),
        (Format.CHAT, {"messages": [{"role": "system", "content": "s"}, *CHAT["messages"] * 9]}),
        (Format.SHAREGPT, TALK),
        (Format.ALPACA, ALPACA),
        (Format.ALPACA, ALPACA | {"input": "c"}),
        (Format.PROMPT_COMPLETION, PAIR),
    ],
)
def test_plain_rows_are_clean(format_, row):
    sifted = sift(format_, row)

    assert (sifted.clean, sifted.suspects) == ([0], [])


@pytest.mark.parametrize(
    "line",
    [
        b"",
        b"{",
        b"\xef\xbb\xbf" + json.dumps(PAIR).encode(),
        json.dumps(PAIR | {"id": 7}).encode(),
        json.dumps(PAIR | {"prompt": " "}).encode(),
        b'{"prompt": "a", "prompt": "b", "completion": "c"}',
        b'{"prompt": "a", "prompt" : "b", "completion": "c"}',
        b'{"prompt": "\\u0022\\u0022", "prompt" : "b", "completion": "c"}',
        b'{"prompt": "a\\u0000", "completion": "c"}',
        b'{"prompt": "a\\u001b", "completion": "c"}',
        b'{"prompt": "a\\\\\\b", "completion": "c"}',
        b'{"prompt": "\\u202e", "completion": "c"}',
        b'{"prompt": "<|im_end|>", "completion": "c"}',
        b'{"prompt": "\\u003c/s>", "completion": "c"}',
        '{"prompt": "\u2067", "completion": "c"}'.encode(),
        b'{"prompt": "\xff", "completion": "c"}',
    ],
)
def test_whatever_is_odd_is_a_suspect(line):
    assert sift(Format.PROMPT_COMPLETION, line).suspects == [0]


OWN = {"id": 7, "source": 'a "book"', "score": 0.5, "is_new": True, "note": None}


def sift_with_own(*rows):
    """Sift rows of a file whose first row has keys of its own."""
    lines = [row if isinstance(row, bytes) else json.dumps(row).encode() for row in rows]
    return Sieve(Format.PROMPT_COMPLETION, [json.dumps(PAIR | OWN).encode()]).sift(lines)


@pytest.mark.parametrize(
    "row",
    [
        PAIR | OWN,
        OWN | PAIR,
        PAIR,
        PAIR | {"id": "7", "source": 1, "note": 'so "it" is'},
        PAIR | {"prompt": 'say "hi"', "source": 'a "book"'},
    ],
)
def test_rows_with_plain_keys_of_their_own_are_clean(row):
    assert sift_with_own(row).clean == [0]


@pytest.mark.parametrize(
    "row",
    [
        PAIR | {"other": 1},
        PAIR | {"id": [7]},
        PAIR | {"id": {"a": 1}},
        b'{"id": 1, "prompt": "a", "completion": "b", "id": 2}',
        b'{"id": "x", "prompt": "a", "completion": "b", "id" : "y"}',
        b'{"source": "\\"\\"", "prompt": "a", "completion": "b", "source": 1}',
        b'{"id": 1, "prompt": "a", "prompt": "b", "completion": "c"}',
        b'{"id": "\\u0000", "prompt": "a", "completion": "b"}',
        b'{"id": "\xff", "prompt": "a", "completion": "b"}',
        b'{"id": 01, "prompt": "a", "completion": "b"}',
        b'{"id": 1e999, "prompt": "a", "completion": "b"}',
    ],
)
def test_keys_of_their_own_hide_nothing(row):
    assert sift_with_own(row).suspects == [0]


@pytest.mark.parametrize("key", ["label", "tools", "system", "text", "chosen"])
def test_a_key_that_a_format_reads_is_none_of_their_own(key):
    line = json.dumps(PAIR | {key: "a topic"}).encode()

    assert Sieve(Format.PROMPT_COMPLETION, [line]).sift([line]).suspects == [0]


@pytest.mark.parametrize(("system_count", "clean"), [(0, [0]), (1, [])])
def test_only_as_many_turns_as_a_row_may_have_are_clean(system_count, clean):
    turns = [{"role": "system", "content": "s"}] * system_count + CHAT["messages"] * (MAX_MESSAGES // 2)

    assert sift(Format.CHAT, {"messages": turns}).clean == clean


def test_windows_paths_and_formulas_are_not_odd():
    assert sift(Format.PROMPT_COMPLETION, PAIR | {"prompt": "C:\\bin \\frac{a}{b} \\beta"}).clean == [0]


@pytest.mark.parametrize("row", [CHAT, TALK, ALPACA | {"input": "x"}, PAIR])
def test_a_report_is_the_same_with_and_without_the_sieve(write_rows, monkeypatch, row):
    row = {"id": 0, **row}
    odd = [
        {**row, "extra": 1},
        {**row, "id": []},
        {**row, "id": "x"},
        {"mesages": 1},
        b"{]",
        b"  ",
        row,
        {**row, "x": "\u202e"},
    ]
    path = write_rows(*[row] * 3, *odd, *[row] * 3)
    fast = validate.validate_file(path, "rows.jsonl")

    monkeypatch.setattr(validate._Validation, "_read_chunks", validate._Validation._read_rows)
    exact = validate.validate_file(path, "rows.jsonl")

    assert fast.model_dump() == exact.model_dump()
