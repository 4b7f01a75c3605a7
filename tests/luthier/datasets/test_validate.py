"""What validation says about files, good and bad."""

import json
import re
import tracemalloc

import pytest

from luthier.datasets.validate import check_head, failure_message, validate_file
from luthier.errors import printable

GOOD = {"messages": [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "hello"}]}
GOOD_LINE = json.dumps(GOOD).encode()
USER, ANSWER = GOOD["messages"]
PAIR = {"prompt": "hi", "completion": "hello"}
CALL = {"function": {"name": "f", "arguments": {}}}


def chat(*messages):
    return {"messages": list(messages)}


def only_error(path):
    report = validate_file(path, path.name)
    assert not report.valid
    assert report.error_count == 1
    return report.errors[0]


@pytest.mark.parametrize(
    ("content", "code", "says"),
    [
        (b"", "dataset.empty", "0 bytes"),
        (b"\n \n\r\n", "dataset.no_rows", "blank"),
        (b"[]", "dataset.no_rows", "array is empty"),
        (b"\xff\xfe{\0}\0", "encoding.utf16", "UTF-16 LE"),
        ('{"a": 1}'.encode("utf-16-be"), "encoding.utf16", "UTF-16 BE"),
        (b"PK\x03\x04abc", "archive.unsupported", "ZIP"),
        (b"\x1f\x8babc", "gzip.corrupt", "gzip"),
        (b"PAR1abc", "parquet.truncated", "Parquet"),
        (b"\x80\x04abc", "format.magic_mismatch", "pickle"),
        (b"%PDF-1.7", "format.magic_mismatch", "PDF"),
        (b"\x89PNG\r\n", "format.magic_mismatch", "PNG"),
    ],
)
def test_a_file_that_holds_no_text_rows_is_named_as_what_it_is(tmp_path, content, code, says):
    path = tmp_path / "rows.jsonl"
    path.write_bytes(content)

    error = only_error(path)

    assert (error.line, error.code) == (None, code)
    assert says in error.message


@pytest.mark.parametrize(
    ("line", "code", "says"),
    [
        (
            b'{"prompt": "caf\xe9"}',
            "encoding.invalid_utf8",
            "byte 16: 0xE9 is not UTF-8 (it looks like Windows",
        ),
        (b'{"prompt": "\xed\xa0\x80"}', "encoding.invalid_utf8", "byte 13"),
        (b'{"prompt": "a\0b"}', "content.nul", "byte 14"),
        (b'{"prompt": "a\\u0000", "completion": "b"}', "content.nul_escape", "\\u0000"),
        (b'\xef\xbb\xbf{"prompt": "a"}', "encoding.bom", "inside the file"),
        (b'{"prompt": "a", "completion": "b",}', "json.syntax", "column 35: remove the comma"),
        (b"{'prompt': 'a'}", "json.syntax", "double quotes"),
        (b'{"prompt": None}', "json.syntax", "write null"),
        (b'{"prompt": "a" // why\n}', "json.syntax", "comments"),
        (b'{"prompt": "a\tb"}', "json.control_char", "column 14"),
        (b'{"prompt": NaN}', "json.non_finite", "NaN"),
        (b'{"prompt": 1e999}', "json.non_finite", "1e999"),
        (b'{"prompt": ["\\ud800"]}', "json.lone_surrogate", "prompt[0] holds half of a surrogate"),
        (b'{"a": ' + b"9" * 5000 + b"}", "json.int_too_long", "thousands of digits"),
        (b'{"a": 1} {"b": 2}', "json.extra_data", "column 10"),
        (b'{"a": 1}\r{"b": 2}', "format.cr_newlines", "LF"),
        (b'{"prompt": "a', "json.truncated", "inside a string"),
        (b"{", "format.multiline_json", "on one line"),
        (b'{"a": ' + b"[" * 64 + b"]" * 64 + b"}", "json.too_deep", "65 deep"),
        (b'{"a": ' + b"[" * 100_000 + b"]" * 100_000 + b"}", "json.too_deep", "100001 deep"),
        (b"[1, 2]", "row.not_object", "a list"),
        (b"7", "row.not_object", "a number"),
    ],
)
def test_a_line_that_is_not_the_json_we_read_is_told_apart(write_rows, line, code, says):
    error = validate_file(write_rows(GOOD, line), "rows.jsonl").errors[0]

    assert (error.line, error.code) == (2, code)
    assert error.message.startswith("Line 2: ")
    assert says in error.message


@pytest.mark.parametrize(
    ("row", "code", "says"),
    [
        ({"mesages": []}, "schema.unknown", "'mesages' -> 'messages'?"),
        ({"input": {"messages": []}}, "schema.unknown", 'the keys input; use {"messages"'),
        ({"messages": None}, "chat.messages_type", "messages is null"),
        ({"messages": {}}, "chat.messages_type", "messages is an object"),
        ({"messages": []}, "chat.messages_empty", "messages is empty"),
        ({"messages": [USER] * 513}, "chat.too_many_messages", "513"),
        (
            {"instruction": "x", "output": "y", "history": [["a", "b"]] * 256},
            "alpaca.too_many_turns",
            "history has 256 pairs, over the limit of 255",
        ),
        (
            chat(USER, ANSWER | {"tool_calls": [CALL] * 513}),
            "chat.too_many_tool_calls",
            "messages[1].tool_calls has 513 calls",
        ),
        (
            {"conversations": [{"from": "function_call", "value": json.dumps([{"name": "f"}] * 513)}]},
            "chat.too_many_tool_calls",
            "conversations[0].value has 513 calls",
        ),
        (chat("hi"), "chat.message_type", "messages[0] is a string"),
        (
            chat(USER, ANSWER, {"role": "bot", "content": "x"}),
            "chat.role_invalid",
            "messages[2].role is 'bot'; use",
        ),
        (chat({"role": "User", "content": "x"}, ANSWER), "chat.role_invalid", "did you mean 'user'?"),
        (chat({"content": "x"}, ANSWER), "chat.role_invalid", "messages[0].role is missing"),
        (chat(USER, USER, ANSWER), "chat.alternation", "messages[1] is a second user turn"),
        (chat(ANSWER), "chat.alternation", "messages[0] is an assistant turn before any user turn"),
        (chat(USER, {"role": "system", "content": "x"}, ANSWER), "chat.system_position", "messages[1]"),
        (chat(USER), "chat.no_assistant", "nothing to learn"),
        (chat(USER, {"role": "assistant", "content": None}), "chat.content_null", "messages[1].content"),
        (
            chat(USER, {"role": "assistant", "content": 7}),
            "chat.content_type",
            "messages[1].content is a number",
        ),
        (
            chat({"role": "user", "content": [{"type": "image_url"}]}, ANSWER),
            "chat.content_type",
            "'image_url'",
        ),
        (chat(USER, ANSWER | {"weight": 0.5}), "chat.weight", "use 0 or 1"),
        (chat(USER, {"role": "tool", "content": "x"}, ANSWER), "chat.tool_call_unmatched", "messages[1]"),
        (chat(USER, ANSWER | {"tool_calls": [{}]}), "chat.tool_calls_type", "messages[1].tool_calls[0]"),
        (
            chat(USER, ANSWER | {"tool_calls": [{"function": {"name": "f", "arguments": "{"}}]}),
            "chat.tool_args_json",
            "tool_calls[0].function.arguments",
        ),
        (chat(USER, ANSWER) | {"tools": "x"}, "chat.tools_type", "tools"),
        (
            {"prompt": "x", "response": "y"},
            "pc.field_missing",
            "completion is missing; the row has the keys prompt",
        ),
        ({"prompt": ["x"], "completion": "y"}, "pc.field_type", "prompt is a list"),
        ({"prompt": "x", "completion": " \n"}, "pc.field_blank", "completion is blank"),
        ({"instruction": "x", "output": None}, "alpaca.field_type", "output is null"),
        ({"instruction": " ", "output": "y"}, "alpaca.field_blank", "instruction is blank"),
        ({"instruction": "x", "output": "y", "history": [["a"]]}, "alpaca.history_type", "history[0]"),
        ({"conversations": [{"from": "ai", "value": "x"}]}, "sharegpt.role_invalid", "did you mean 'gpt'?"),
        ({"conversations": [USER, ANSWER]}, "sharegpt.role_invalid", "rename it to messages"),
        ({"conversations": [{"from": "human", "value": 1}]}, "sharegpt.field_type", "conversations[0].value"),
        (
            {"conversations": [{"from": "human", "value": "x"}, {"from": "function_call", "value": "f()"}]},
            "sharegpt.function_call",
            "conversations[1].value",
        ),
    ],
)
def test_a_row_that_makes_no_example_is_told_with_its_place(write_rows, row, code, says):
    error = validate_file(write_rows(row), "rows.jsonl").errors[0]

    assert (error.line, error.code) == (1, code)
    assert says in error.message


@pytest.mark.parametrize(
    ("row", "format_"),
    [
        (GOOD, "chat"),
        (PAIR | {"id": 7}, "prompt_completion"),
        ({"instruction": "x", "input": "", "output": "y", "history": [["a", "b"]], "prompt": "z"}, "alpaca"),
        ({"conversations": [{"from": "human", "value": "x"}, {"from": "gpt", "value": "y"}]}, "sharegpt"),
        (GOOD | {"prompt": None, "completion": None}, "chat"),
        ({"instruction": "x", "output": "y", "history": [["a", "b"]] * 255}, "alpaca"),
        (chat(USER, ANSWER | {"tool_calls": [CALL] * 512}), "chat"),
        (chat({"role": "developer", "content": [{"type": "text", "text": "x"}]}, USER, ANSWER), "chat"),
    ],
)
def test_the_format_is_known_by_the_keys(write_rows, row, format_):
    report = validate_file(write_rows(row, name="rows.txt"), "rows.txt")

    assert report.valid
    assert report.format == format_


def test_a_second_format_in_the_file_is_refused(write_rows):
    error = only_error(write_rows(GOOD, GOOD, PAIR))

    assert error.code == "schema.mixed"
    assert error.message.startswith("Line 3: the row is prompt_completion, but line 1 is chat")


@pytest.mark.parametrize(
    "content",
    [
        GOOD_LINE,
        b"\r\n".join([GOOD_LINE] * 2),
        b"\n\n" + GOOD_LINE + b"\n\n",
        json.dumps(chat(USER, ANSWER | {"content": "a\u2028b\u0085c"}), ensure_ascii=False).encode(),
        json.dumps([GOOD, GOOD]).encode(),
        b"\xef\xbb\xbf\n" + json.dumps([GOOD] * 3, indent=2).encode() + b"\n",
    ],
    ids=["no end", "crlf", "blank lines", "other separators", "array", "pretty array with mark"],
)
def test_all_ways_to_write_good_rows_are_taken(tmp_path, content):
    path = tmp_path / "rows.json"
    path.write_bytes(content)

    report = validate_file(path, "rows.json")

    assert report.valid, report.errors
    assert report.row_count == content.count(b'"messages"')


@pytest.mark.parametrize(
    ("content", "line", "code"),
    [
        (b'[\n{"a":1},\n]', 3, "json.syntax"),
        (b'[\n{"prompt":"a","completion":"b"}\n{"b":2}]', 3, "json.syntax"),
        (b'[{"prompt":"a","completion":"b"}', 1, "json.truncated"),
        (b'[{"prompt":"a","completion":"b"},\n{"prompt":"a', 2, "json.truncated"),
        (b'[{"prompt":"a","completion":"b"}]\n{}', 2, "json.extra_data"),
        (b'[{\n"prompt":"a",\n"completion":}]', 3, "json.syntax"),
        (b'[{"prompt":"a","completion":"b"},\n 7]', 2, "row.not_object"),
    ],
)
def test_a_broken_array_is_told_with_the_line_of_the_mistake(tmp_path, content, line, code):
    path = tmp_path / "rows.json"
    path.write_bytes(content)

    last = validate_file(path, "rows.json").errors[-1]

    assert (last.line, last.code) == (line, code)


@pytest.mark.parametrize("start", [b'{"prompt": "', b'[{"prompt": "'])
def test_a_line_without_end_is_not_read_past_the_limit(tmp_path, start):
    path = tmp_path / "rows.jsonl"
    with path.open("wb") as file:
        file.write(start)
        for _ in range(17):
            file.write(b"x" * 1024 * 1024)

    assert only_error(path).code == "row.too_large"


@pytest.mark.timeout(30)
def test_quotes_that_never_close_are_looked_at_once(write_rows):
    # Looking again from every quote, as a plain pattern would, takes hours for this row.
    report = validate_file(write_rows(b'{"' + b'\\"' * 2_000_000), "rows.jsonl")
    assert report.errors[0].code == "json.truncated"


@pytest.mark.timeout(30)
def test_a_key_among_very_many_is_found_twice_at_once(write_rows):
    # Counting each key by itself takes hours for this row.
    keys = b",".join(b'"%d": 0' % number for number in range(500_000))
    report = validate_file(write_rows(b"{" + keys + b', "z": 1, "z": 2}'), "rows.jsonl")
    assert report.errors[0].message == "Line 1: the key 'z' appears twice in one object; keep one of them"


@pytest.mark.parametrize(
    ("row", "code"),
    [
        (chat(USER | {"content": [1] * 3000}, ANSWER), "chat.content_type"),
        (chat(USER, ANSWER | {"content": [{"type": "text"}] * 3000}), "chat.content_type"),
        (chat(USER, *[ANSWER | {"tool_calls": [1] * 300}] * 10), "chat.tool_calls_type"),
    ],
)
def test_a_row_of_very_many_mistakes_is_given_up_and_the_next_is_read(write_rows, row, code):
    report = validate_file(write_rows(row, GOOD, {"messages": 1}), "rows.jsonl")

    assert report.error_counts == {code: 1000, "row.too_many_errors": 1, "chat.messages_type": 1}
    assert report.errors[100].message.startswith("Line 1: the row has over 1000 mistakes")


def test_a_report_shows_a_hundred_errors_of_each_code_and_counts_all(write_rows):
    report = validate_file(write_rows(*[{"mesages": []}] * 300, *[7] * 200, GOOD), "rows.jsonl")

    assert (report.row_count, report.error_count) == (501, 500)
    assert report.error_counts == {"schema.unknown": 300, "row.not_object": 200}
    assert [error.line for error in report.errors] == [*range(1, 101), *range(301, 401)]


def test_of_a_very_long_value_only_what_is_shown_is_looked_at():
    value = "bot" * 1_000_000
    tracemalloc.start()
    text = printable(value, 40)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()

    assert text == "bot" * 13 + "…"
    assert peak < 64 * 1024


def test_a_report_stays_small_enough_for_an_event(write_rows):
    keys = ({f"\u20ac{number}" * 5_000: "x", "messages": [{"role": "\u20ac" * 99}]} for number in range(500))
    report = validate_file(write_rows(*keys), "rows.jsonl")

    assert not report.valid
    assert len(report.model_dump_json()) < 200 * 1024


def test_oddities_are_counted_and_do_not_make_a_file_bad(write_rows):
    odd = chat(USER, ANSWER | {"content": " ", "reasoning": "x"}, USER)
    report = validate_file(write_rows(odd, GOOD, odd), "rows.jsonl")

    assert report.valid
    assert {warning.code: warning.count for warning in report.warnings} == {
        "chat.ignored_keys": 2,
        "chat.ends_without_answer": 2,
        "chat.content_blank": 2,
        "dataset.duplicates": 1,
        "dataset.too_small": 1,
    }
    assert report.warnings[0].lines == (1, 3)
    assert re.match(r"Line 1: messages\[1\] has keys that are ignored: reasoning", report.warnings[0].message)


def test_one_line_tells_why_a_file_cannot_be_used(write_rows):
    bad = chat(USER, {"role": "bot", "content": "x"})

    one = failure_message(validate_file(write_rows(GOOD, bad), "rows.jsonl"))
    two = failure_message(validate_file(write_rows(GOOD, bad, bad), "rows.jsonl"))

    assert one == (
        "Line 2: messages[1].role is 'bot'; use system, developer, user, assistant or tool "
        "(did you mean 'assistant'?)"
    )
    assert two == one + " (and 1 more error)"


def test_the_head_of_a_large_file_is_checked_without_its_rest(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_bytes((GOOD_LINE + b"\n") * 20_000 + b"broken\n")

    head = check_head(path, "rows.jsonl")

    assert head.valid
    assert not head.is_whole
    assert 0 < head.row_count < 20_000
    assert not validate_file(path, "rows.jsonl").valid


def test_the_head_check_sees_bad_rows_but_not_a_cut_last_line(write_rows, tmp_path):
    cut = tmp_path / "cut.jsonl"
    cut.write_bytes(GOOD_LINE + b"\n" + GOOD_LINE[:20])

    assert check_head(cut, "cut.jsonl").valid
    assert check_head(write_rows(GOOD, b"broken"), "rows.jsonl").errors[0].line == 2


def test_the_real_files_are_valid(real_file):
    report = validate_file(real_file, real_file.name)

    assert report.valid
    assert report.row_count == 503
    assert report.warnings == ()
