"""Preview and measurement agree with what preparation would do."""

import pytest

from luthier.datasets.measure import measure
from luthier.datasets.prepare import prepare_file
from luthier.datasets.preview import preview_rows
from luthier.spec import DatasetRequest, SourceFile

LONG = {"prompt": "hello " * 50, "completion": "world"}
SHORT = {"prompt": "hello é", "completion": "world"}
BAD = {"prompt": "hello"}


@pytest.fixture
def source(write_rows):
    def write(*rows):
        path = write_rows(*rows)
        return SourceFile(path=str(path), filename="rows.jsonl", param="file")

    return write


def preview(source, tokenizer, limit=512, offset=0, count=5, **rules):
    rules = DatasetRequest(**rules)
    return preview_rows(source, tokenizer, rules=rules, max_seq_length=limit, offset=offset, count=count)


@pytest.mark.parametrize("rules", [{}, {"template": "qwen", "style": "llamafactory"}])
def test_a_preview_shows_text_tokens_and_what_is_learnt(source, tokenizer, rules):
    [row] = preview(source(SHORT), tokenizer, **rules)

    learnt = [token for token in row.tokens if token.is_trained]
    assert all(row.text[token.start : token.end] == token.text for token in row.tokens)
    assert "".join(token.text for token in learnt).startswith("world<|im_end|>")
    assert (row.token_count, row.trained_token_count) == (len(row.tokens), len(learnt))
    assert [(message.role, message.is_trained) for message in row.messages] == [
        ("user", False),
        ("assistant", True),
    ]
    assert (row.is_truncated, row.is_dropped, row.warnings) == (False, False, ())


def test_a_preview_says_what_becomes_of_long_and_bad_rows(source, tokenizer):
    file = source(LONG, BAD, SHORT)

    cut, bad, fine = preview(file, tokenizer, limit=40)
    dropped, *_ = preview(file, tokenizer, limit=40, overlength="drop")

    assert (cut.is_truncated, cut.is_dropped, cut.token_count) == (True, False, 40)
    assert "the answer is kept" in cut.warnings[0]
    assert (bad.line, bad.is_dropped) == (2, True)
    assert bad.warnings[0].startswith("Line 2: completion is missing")
    assert not fine.warnings
    assert dropped.is_dropped


def test_a_preview_begins_where_it_is_asked_to(source, tokenizer):
    rows = preview(source(*[SHORT] * 4, LONG), tokenizer, offset=3, count=5)

    assert [row.line for row in rows] == [4, 5]


def test_a_measurement_equals_the_preparation(source, tokenizer, tmp_path):
    file, rules = source(LONG, SHORT, SHORT, {"prompt": "x", "completion": "word " * 60}), DatasetRequest()
    prepared = prepare_file(file, tmp_path / "t.parquet", tokenizer, rules=rules, max_seq_length=40)

    report = measure(file, tokenizer, rules=rules, max_seq_length=40)

    split = prepared.split
    assert (report.token_count, report.trained_token_count) == (split.token_count, split.trained_token_count)
    assert (report.row_count, report.is_exact, report.longest) == (4, True, prepared.stats.longest_row_tokens)
    assert (report.truncated_ratio, report.lost_answer_ratio) == (0.5, 0.25)
    assert sum(report.histogram.counts) == 4
    assert report.percentiles[99] == report.longest


def test_a_measurement_of_the_first_rows_says_so_and_counts_bad_ones(source, tokenizer):
    report = measure(
        source(SHORT, BAD, SHORT, SHORT), tokenizer, rules=DatasetRequest(), max_seq_length=99, max_rows=3
    )

    assert (report.measured_row_count, report.bad_row_count) == (2, 1)
    assert (report.row_count, report.is_exact) == (None, False)
