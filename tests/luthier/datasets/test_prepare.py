"""Prepared files: ids, masks, and what is dropped."""

from pathlib import Path

import pyarrow.parquet as pq
import pytest
from tokenizers import Tokenizer

from luthier.artifacts import sha256_of
from luthier.datasets.examples import DatasetError
from luthier.datasets.parquet import SCHEMA
from luthier.datasets.prepare import prepare_file
from luthier.datasets.tokenizer import ModelTokenizer
from luthier.spec import DatasetRequest, SourceFile


@pytest.fixture
def prepare(tokenizer, tmp_path):
    """Prepares a file; gives the outcome, and each row as its text and its learnt text."""

    def prepare_rows(source, max_seq_length=512, model=tokenizer, **rules):
        target = tmp_path / "train.parquet"
        rules = DatasetRequest(**rules)
        source = SourceFile(path=str(source), filename=source.name, param="training_file")
        prepared = prepare_file(source, target, model, rules=rules, max_seq_length=max_seq_length)
        return prepared, pq.read_table(target).to_pylist()

    return prepare_rows


@pytest.fixture
def learnt(model_folder):
    """The text of the tokens that a row's mask marks."""
    plain = Tokenizer.from_file(str(model_folder / "tokenizer.json"))

    def decode(row):
        ids = [token for token, mark in zip(row["input_ids"], row["loss_mask"], strict=True) if mark]
        return plain.decode(ids, skip_special_tokens=False)

    return decode


def chat(*contents, **last):
    roles = ("user", "assistant") * len(contents)
    messages = [{"role": role, "content": content} for role, content in zip(roles, contents, strict=False)]
    messages[-1] |= last
    return {"messages": messages}


LONG = {"prompt": "hello " * 50, "completion": "world"}
SHORT = {"prompt": "hello", "completion": "world"}


@pytest.mark.parametrize(
    ("train_on", "expected"),
    [
        ("assistant", "one <|im_end|>two<|im_end|>"),
        ("last", "two<|im_end|>"),
        ("all", "user\nhi<|im_end|>\n<|im_start|>assistant\none <|im_end|>\n"
         "<|im_start|>user\nmore<|im_end|>\n<|im_start|>assistant\ntwo<|im_end|>\n"),
    ],
)  # fmt: skip
def test_the_mask_marks_what_the_rule_says(prepare, learnt, write_rows, train_on, expected):
    _, [row] = prepare(write_rows(chat("hi", "one ", "more", "two")), train_on=train_on)

    assert learnt(row) == expected


@pytest.mark.parametrize(
    ("train_on", "expected"), [("assistant", "one<|im_end|>"), ("all", "user\nhi<|im_end|>\n")]
)
def test_turns_of_weight_zero_are_never_learnt(prepare, learnt, write_rows, train_on, expected):
    _, [row] = prepare(write_rows(chat("hi", "one", "more", "two", weight=0)), train_on=train_on)

    assert learnt(row).startswith(expected)
    assert "two" not in learnt(row)


def test_a_prompt_without_template_is_followed_by_completion_and_end(
    prepare, learnt, write_rows, model_folder
):
    tokenizer = Tokenizer.from_file(str(model_folder / "tokenizer.json"))
    model = ModelTokenizer(tokenizer, None, {"eos_token": "<|endoftext|>"})

    _, [row] = prepare(write_rows({"prompt": "hello", "completion": " world"}), model=model)

    assert learnt(row) == " world<|endoftext|>"


def test_long_rows_are_cut_and_keep_their_answers(prepare, learnt, write_rows):
    answer_is_long = {"prompt": "hello", "completion": "world " * 50}

    prepared, rows = prepare(write_rows(LONG, SHORT, answer_is_long), max_seq_length=40)

    assert [len(row["input_ids"]) for row in rows][::2] == [40, 40]
    assert [learnt(row) for row in rows][:2] == ["world<|im_end|>", "world<|im_end|>"]
    stats = prepared.stats
    assert (stats.read_row_count, stats.truncated_row_count, stats.untrained_row_count) == (3, 2, 0)
    assert (stats.answer_count, stats.lost_answer_count) == (3, 1)
    assert stats.longest_row_tokens > prepared.split.longest_row_tokens == 40


def test_long_rows_are_dropped_where_asked(prepare, write_rows):
    prepared, rows = prepare(write_rows(LONG, SHORT), max_seq_length=40, overlength="drop")

    assert len(rows) == prepared.split.row_count == 1
    assert prepared.stats.overlength_row_count == 1


def test_long_rows_are_refused_where_asked(prepare, write_rows, tmp_path):
    with pytest.raises(DatasetError, match=r"^Line 2: the row has \d+ tokens, over qlora.max_seq_length 40"):
        prepare(write_rows(SHORT, LONG), max_seq_length=40, overlength="raise")

    assert [path.name for path in tmp_path.iterdir()] == ["rows.jsonl"]


@pytest.mark.parametrize(("row", "limit"), [(chat("hi", "there", weight=0), 512), (LONG, 1)])
def test_d50_a_file_without_anything_to_learn_is_refused(prepare, write_rows, row, limit):
    says = f"None of the 2 rows has a token to learn within qlora.max_seq_length {limit} "

    with pytest.raises(DatasetError, match=says) as caught:
        prepare(write_rows(row, row), max_seq_length=limit)

    assert caught.value.issue.code == "dataset.all_truncated"


def test_d51_more_than_a_tenth_of_rows_without_anything_to_learn_is_refused(prepare, write_rows):
    rows = [chat("hi", "there", weight=0), *[chat("hi", "there")] * 8]

    assert prepare(write_rows(*rows, chat("hi", "there")))[0].stats.untrained_row_count == 1
    with pytest.raises(DatasetError, match="1 of 9 rows have no token to learn") as caught:
        prepare(write_rows(*rows))
    prepared, _ = prepare(write_rows(*rows), on_bad_row="drop")

    assert caught.value.issue.code == "dataset.too_few_trained"
    assert prepared.stats.untrained_row_count == 1


def test_a_row_that_the_template_refuses_is_told_by_its_line(prepare, write_rows, model_folder):
    tokenizer = Tokenizer.from_file(str(model_folder / "tokenizer.json"))
    template = (
        "{{ messages[0].content }}{% if messages|length > 2 %}{{ raise_exception('too many') }}{% endif %}"
    )
    model = ModelTokenizer(tokenizer, template + "{{ messages[-1].content }}", {})

    with pytest.raises(DatasetError, match=r"^Line 2: the model's chat template refuses the row: too many"):
        prepare(write_rows(chat("a", "b"), chat("a", "b", "c", "d")), model=model)


def test_the_split_tells_what_the_file_holds(prepare, write_rows):
    prepared, rows = prepare(write_rows(SHORT, SHORT))

    split = prepared.split
    assert split.sha256 == sha256_of(Path(split.path))
    assert split.token_count == sum(len(row["input_ids"]) for row in rows)
    assert split.trained_token_count == sum(sum(row["loss_mask"]) for row in rows)
    assert pq.read_schema(split.path).equals(SCHEMA)


def test_all_real_rows_give_something_to_learn(prepare, learnt, real_file):
    prepared, rows = prepare(real_file, max_seq_length=2048)

    assert prepared.split.row_count == len(rows) == 503
    assert all(learnt(row).endswith("<|im_end|>") for row in rows)
    assert prepared.stats.untrained_row_count == prepared.stats.truncated_row_count == 0
