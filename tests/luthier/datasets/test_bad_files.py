"""The catalogue of bad dataset files: each case, by its number, ends in its documented code.

The numbers are those of the list of bad uploads that the readers were built against; cases that belong to
HTTP (uploads, downloads, quotas) are tested where HTTP is.
"""

import decimal
import gzip
import io
import json
import resource
import struct
import subprocess
import sys
import textwrap
import zlib

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard

from luthier.datasets.parquet_rows import MAX_COLUMNS, MAX_ROW_GROUPS
from luthier.datasets.reading import PLAIN, Reading
from luthier.datasets.validate import validate_file

USER, ANSWER = {"role": "user", "content": "hi"}, {"role": "assistant", "content": "hello"}
PAIR = {"prompt": "hi", "completion": "hello"}
LINE = json.dumps(PAIR).encode() + b"\n"
CALLING = {"role": "assistant", "tool_calls": [{"id": "c1", "function": {"name": "f", "arguments": "{}"}}]}


def chat(*messages, **more):
    return json.dumps({"messages": list(messages)} | more).encode()


def lines(*rows):
    return b"".join(row if isinstance(row, bytes) else json.dumps(row).encode() + b"\n" for row in rows)


def parquet(columns, **options):
    file = io.BytesIO()
    pq.write_table(pa.table(columns), file, **options)
    return file.getvalue()


def zipped(data, name=b"rows.jsonl"):
    head = struct.pack(
        "<4s5H3I2H", b"PK\x03\x04", 20, 0, 0, 0, 0, zlib.crc32(data), len(data), len(data), len(name), 0
    )
    return head + name + data


def tarred(data):
    return b"rows.jsonl".ljust(257, b"\0") + b"ustar" + b"\0" * 250 + data


def gzip_of_size(size):
    """Lines in so many bytes of gzip, which a long name in its header makes up for."""

    def packed(name):
        file = io.BytesIO()
        with gzip.GzipFile(name, "wb", fileobj=file) as packer:
            packer.write(LINE * 3)
        return file.getvalue()

    return packed("x" * (1 + size - len(packed("x"))))


GZ = gzip.compress(LINE * 3)
ZSTD = zstandard.compress(LINE * 3)
PARQUET = parquet({"prompt": ["a"], "completion": ["b"]})


def claiming(rows):
    """PARQUET, which has one row, with another number of them in its footer, as Thrift's varint."""
    [size] = struct.unpack("<I", PARQUET[-8:-4])
    footer = PARQUET[-8 - size : -8]
    # The third field of the metadata and the head of the fourth, a list of one row group.
    assert footer.count(b"\x16\x02\x19\x1c") == 1
    footer = footer.replace(b"\x16\x02\x19\x1c", b"\x16" + rows + b"\x19\x1c")
    return PARQUET[: -8 - size] + footer + struct.pack("<I", len(footer)) + b"PAR1"


TWICE = io.BytesIO()
pq.write_table(pa.table([["a"], ["b"], ["c"]], names=["prompt", "completion", "completion"]), TWICE)
BIG_WINDOW = zstandard.ZstdCompressor(
    compression_params=zstandard.ZstdCompressionParameters.from_level(1, window_log=31, enable_ldm=True)
).compressobj()
WIDE = BIG_WINDOW.compress(LINE) + BIG_WINDOW.flush()

FILES = {
    "D1": (b"", "dataset.empty"),
    "D2": (b" \n\n\t\n", "dataset.no_rows"),
    "D3": (b"prompt,completion\n", "dataset.no_rows"),
    "D4-mid-file": (LINE + b"\xef\xbb\xbf" + LINE, "encoding.bom"),
    "D5-utf16": (LINE.decode().encode("utf-16"), "encoding.utf16"),
    "D5-utf32": (LINE.decode().encode("utf-32"), "encoding.utf16"),
    "D5-csv": ("prompt,completion\na,b\n".encode("utf-16-le"), "encoding.utf16"),
    "D6": (LINE * 3 + b'{"prompt": "caf\xe9", "completion": "b"}\n', "encoding.invalid_utf8"),
    "D7-overlong": (b'{"prompt": "\xc0\xaf", "completion": "b"}\n', "encoding.invalid_utf8"),
    "D7-surrogate": (LINE + b'{"prompt": "\xed\xa0\x80", "completion": "b"}\n', "encoding.invalid_utf8"),
    "D8": (LINE + b'{"prompt": "\\ud800", "completion": "b"}\n', "json.lone_surrogate"),
    "D9": (LINE + b'{"prompt": "a\0", "completion": "b"}\n', "content.nul"),
    "D10": (LINE + b'{"prompt": "a\\u0000", "completion": "b"}\n', "content.nul_escape"),
    "D11": (LINE + b'{"prompt": "a\x01", "completion": "b"}\n', "json.control_char"),
    "D14": (LINE * 9 + LINE[:-10], "json.truncated"),
    "D15-comma": (LINE + b'{"prompt": "a", "completion": "b",}\n', "json.syntax"),
    "D15-quotes": (b"{'prompt': 'a', 'completion': 'b'}\n", "json.syntax"),
    "D15-comment": (LINE + b'{"prompt": "a", // first\n', "json.syntax"),
    "D17": (json.dumps(PAIR, indent=2).encode(), "format.multiline_json"),
    "D18": (LINE + LINE[:-1] + LINE, "json.extra_data"),
    "D19-number": (LINE + b"7\n", "row.not_object"),
    "D19-null": (b"null\n", "row.not_object"),
    "D19-list": (LINE + b"[1]\n", "row.not_object"),
    "D20-nan": (b'{"prompt": NaN}\n', "json.non_finite"),
    "D20-infinity": (LINE + b'{"prompt": -Infinity}\n', "json.non_finite"),
    "D20-large": (LINE + b'{"prompt": -1e999}\n', "json.non_finite"),
    "D21": (LINE + b'{"prompt": ' + b"9" * 5000 + b"}\n", "json.int_too_long"),
    "D22-row": (LINE + b'{"prompt": "a", "prompt": "b", "completion": "c"}\n', "json.duplicate_key"),
    "D22-turn": (
        chat(USER, ANSWER) + b'\n{"messages":[{"role":"user","content":"a"},'
        b'{"role":"assistant","role":"assistant","content":"b"}]}\n',
        "json.duplicate_key",
    ),
    "D22-spaced": (
        chat(USER, ANSWER) + b'\n{"messages":[{"role":"user","role" :"user","content":"a"},'
        b'{"role":"assistant","content":"b"}]}\n',
        "json.duplicate_key",
    ),
    "D22-hidden": (
        LINE + b'{"prompt": "a", "prompt": "\\u0022\\u0022\\u0022\\u0022", "completion": "c"}\n',
        "json.duplicate_key",
    ),
    "D23": (LINE + b'{"prompt": ' + b"[" * 100_000 + b"]" * 100_000 + b"}\n", "json.too_deep"),
    "D25": (LINE + b'{"prompt": "' + b"x" * 17 * 1024**2 + b'", "completion": "y"}\n', "row.too_large"),
    "D27-cr": (LINE.replace(b"\n", b"\r") * 3, "format.cr_newlines"),
    "D27-cr-csv": (b"prompt,completion\ra,b\rc,d\r", "format.cr_newlines"),
    "D29": (lines(PAIR, PAIR, chat(USER, ANSWER) + b"\n"), "schema.mixed"),
    "D30": (lines({"mesages": []}), "schema.unknown"),
    "D31-null": (lines({"messages": None}), "chat.messages_type"),
    "D31-type": (lines({"messages": "hello"}), "chat.messages_type"),
    "D31-empty": (lines({"messages": []}), "chat.messages_empty"),
    "D32": (chat(USER, ANSWER, 7), "chat.message_type"),
    "D33-missing": (chat({"content": "x"}, ANSWER), "chat.role_invalid"),
    "D33-bot": (chat(USER, {"role": "bot", "content": "x"}), "chat.role_invalid"),
    "D33-case": (chat({"role": "User", "content": "x"}, ANSWER), "chat.role_invalid"),
    "D33-space": (chat(USER, {"role": "assistant ", "content": "x"}), "chat.role_invalid"),
    "D34": (chat(USER), "chat.no_assistant"),
    "D36-users": (chat(USER, USER, ANSWER), "chat.alternation"),
    "D36-assistant-first": (chat(ANSWER, USER, ANSWER), "chat.alternation"),
    "D37-late": (chat(USER, {"role": "system", "content": "x"}, ANSWER), "chat.system_position"),
    "D37-two": (chat(*[{"role": "system", "content": "x"}] * 2, USER, ANSWER), "chat.system_position"),
    "D38": (chat(USER, {"role": "assistant", "content": None}), "chat.content_null"),
    "D39-int": (chat(USER, {"role": "assistant", "content": 7}), "chat.content_type"),
    "D39-parts": (chat({"role": "user", "content": [{"type": "image_url"}]}, ANSWER), "chat.content_type"),
    "D41-no-call": (chat(USER, ANSWER, {"role": "tool", "content": "x", "tool_call_id": "c1"}, ANSWER),
                    "chat.tool_call_unmatched"),
    "D41-other-id": (
        chat(USER, CALLING, {"role": "tool", "content": "x", "tool_call_id": "c2"},
             ANSWER), "chat.tool_call_unmatched"),
    "D41-no-id": (
        chat(USER, CALLING, {"role": "tool", "content": "x"}, ANSWER),
        "chat.tool_call_unmatched"),
    "D41-twice": (
        chat(USER, CALLING, *[{"role": "tool", "content": "x", "tool_call_id": "c1"}] * 2, ANSWER),
        "chat.tool_call_unmatched"),
    "D42": (
        chat(USER, {"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": "{"}}]}),
        "chat.tool_args_json"),
    "D44-missing": (lines({"prompt": "a"}), "pc.field_missing"),
    "D44-type": (lines({"prompt": "a", "completion": 7}), "pc.field_type"),
    "D44-blank": (lines({"prompt": "a", "completion": " "}), "pc.field_blank"),
    "D45": (lines({"prompt": "a", "chosen": "b", "rejected": "b"}), "pref.unsupported"),
    "D45-parquet": (parquet({"prompt": ["a"], "chosen": ["b"], "rejected": ["c"]}), "pref.unsupported"),
    "D46": (lines({"prompt": "a", "completion": "b", "label": "yes"}), "kto.unsupported"),
    "D46-bool": (lines({"prompt": "a", "completion": "b", "label": True}), "kto.unsupported"),
    "D47": (lines({"text": "a"}, {"text": 7}), "text.type"),
    "D48": (LINE * 20, "dataset.all_duplicates"),
    "D48-ten": (LINE * 10, "dataset.all_duplicates"),
    "D54-semicolon": (b"prompt;completion\na;b\n", "csv.delimiter"),
    "D54-tab": (b"prompt\tcompletion\na\tb\n", "csv.delimiter"),
    "D55-duplicate": (b"prompt,prompt\na,b\n", "csv.header_duplicate"),
    "D55-parquet": (TWICE.getvalue(), "parquet.duplicate_column"),
    "D55-blank": (b",prompt,completion\n0,a,b\n", "csv.header_blank"),
    "D56": (b"prompt,completion\na,b\na,b,c\n", "csv.column_count"),
    "D57": (b'prompt,completion\na,"b\nc,d\n', "csv.unterminated_quote"),
    "D58-field": (b'prompt,completion\na,"' + (b"x" * 1023 + b"\n") * 17 * 1024, "csv.field_too_large"),
    "D58-row": (b"prompt,completion\n" + b",".join([b"x" * 9 * 1024**2] * 2) + b"\n", "csv.field_too_large"),
    "D58-nul": (b"prompt,completion\na,b\0\n", "content.nul"),
    "D10-parquet": (parquet({"prompt": ["a\0"], "completion": ["b"]}), "content.nul_escape"),
    "D10-cell": (lines({"messages": '[{"role": "user", "content": "\\u0000"}]'}), "chat.messages_type"),
    "D8-cell": (lines({"messages": '[{"role": "user", "content": "\\ud800"}]'}), "chat.messages_type"),
    "D20-cell": (lines({"messages": "[NaN]"}), "chat.messages_type"),
    "D23-cell": (lines({"messages": "[" * 100_000 + "]" * 100_000}), "chat.messages_type"),
    "D60-magic": (b"PAR1" + PARQUET[4:40] + b"\xff" * 40 + b"\x10\0\0\0PAR1", "parquet.invalid"),
    "D60-names": (PARQUET.replace(b"completion", b"compl\xcation"), "parquet.invalid"),
    "D60-truncated": (PARQUET[:-20], "parquet.truncated"),
    "D60-encrypted": (PARQUET[:-4] + b"PARE", "parquet.encrypted"),
    "D62-binary": (parquet({"prompt": [b"a"], "completion": ["b"]}), "parquet.schema"),
    "D62-decimal": (parquet({"prompt": ["a"], "completion": [decimal.Decimal(1)]}), "parquet.schema"),
    "D62-list": (parquet({"messages": [["hi"]]}), "chat.message_type"),
    "D62-dictionary": (
        parquet({"prompt": pa.array(["a"]).dictionary_encode(), "completion": ["b"]}), "parquet.schema"),
    "D63-columns": (parquet({f"c{n}": ["a"] for n in range(MAX_COLUMNS + 1)}), "parquet.too_many_columns"),
    "D63-rows": (claiming(b"\x80\x80\x80\x80\x10"), "dataset.too_large"),
    "D63-more-rows": (claiming(b"\x04"), "parquet.invalid"),
    "D63-no-rows": (claiming(b"\x00"), "parquet.invalid"),
    "D64": (
        parquet({"prompt": pa.ExtensionArray.from_storage(pa.json_(), pa.array(["1"])), "completion": ["b"]}),
        "parquet.extension_type"),
    "D65-arrow": (b"ARROW1\0\0" + LINE, "format.magic_mismatch"),
    "D65-feather": (b"FEA1" + LINE, "format.magic_mismatch"),
    "D65-pickle": (b"\x80\x04\x95" + LINE, "format.magic_mismatch"),
    "D65-npy": (b"\x93NUMPY\x01\0" + LINE, "format.magic_mismatch"),
    "D65-xlsx": (zipped(b"<xml/>", b"[Content_Types].xml"), "format.magic_mismatch"),
    "D65-docx": (zipped(b"<xml/>", b"word/document.xml"), "format.magic_mismatch"),
    "D65-sqlite": (b"SQLite format 3\0" + LINE, "format.magic_mismatch"),
    "D66": (gzip.compress(LINE * 3)[:-9], "gzip.truncated"),
    "D66-zstd": (ZSTD[:-4], "zstd.truncated"),
    "D67-crc": (GZ[:-8] + b"\0\0\0\0" + GZ[-4:], "gzip.corrupt"),
    "D67-trailing": (GZ + b"rest", "gzip.trailing_data"),
    "D67-behind-a-block": (gzip_of_size(64 * 1024) + b"rest", "gzip.trailing_data"),
    "D67-member": (GZ + GZ, "gzip.trailing_data"),
    "D67-zstd-frame": (ZSTD + ZSTD, "zstd.trailing_data"),
    "D69": (gzip.compress(GZ), "archive.nested"),
    "D69-zstd": (zstandard.compress(GZ), "archive.nested"),
    "D70-zip": (zipped(LINE, b"../../etc/cron.d/x"), "archive.unsupported"),
    "D70-tar": (tarred(LINE), "archive.unsupported"),
    "D71": (WIDE, "zstd.window_too_large"),
}  # fmt: skip


@pytest.fixture
def validate(tmp_path):
    """Validates bytes, under a name that says nothing."""

    def run(data, **reading):
        path = tmp_path / "upload"
        path.write_bytes(data)
        return validate_file(path, "upload", reading=Reading(**reading))

    return run


@pytest.mark.parametrize(("data", "code"), FILES.values(), ids=FILES.keys())
def test_a_bad_file_is_refused_with_its_code(validate, data, code):
    report = validate(data)

    assert not report.valid
    assert code in report.error_counts
    assert len(report.errors[0].message) <= 500


@pytest.mark.parametrize(
    ("case", "says"),
    [
        ("D1", "0 bytes"),
        ("D2", "all of its 3 lines are blank"),
        ("D3", "header and 0 data rows"),
        ("D5-utf16", "UTF-16 LE; save it as UTF-8"),
        ("D6", "Line 4: byte 16: 0xE9 is not UTF-8 (it looks like Windows-1252)"),
        ("D22-row", "Line 2: the key 'prompt' appears twice"),
        ("D23", "nested 100001 deep, over the limit of 64"),
        ("D29", "Line 3: the row is chat, but line 1 is prompt_completion"),
        ("D30", "'mesages' -> 'messages'?"),
        ("D54-semicolon", "'prompt;completion', and looks separated by semicolons"),
        ("D54-tab", "looks separated by tabs"),
        ("D55-blank", "column 1 has no name"),
        ("D56", "Line 3: 3 fields, but the header has 2"),
        ("D57", "Line 2: a quote that opens"),
        ("D62-binary", "the column 'prompt' is binary"),
        ("D55-parquet", "the column 'completion' twice"),
        ("D63-rows", f"says that it has {2**31} rows, over the limit of 50000000"),
        ("D63-more-rows", "holds 1 rows, but says that it has 2"),
        ("D67-member", "a second gzip stream"),
        ("D70-zip", "a ZIP archive"),
    ],
)  # fmt: skip
def test_the_message_leads_to_the_mistake(validate, case, says):
    assert says.lower() in validate(FILES[case][0]).errors[0].message.lower()


def many(*rows):
    """The rows, and others that make a file of decent size of them."""
    return lines(*rows, *({"prompt": f"question {number}", "completion": "a"} for number in range(20)))


SECRET = "AKIA" + "Q7" * 8
WARNED = {
    "D4": (b"\xef\xbb\xbf" + many(), "encoding.bom_stripped"),
    "D12": (many(b'{"prompt": "\\u001b[31mred", "completion": "a"}\n'), "content.control_chars"),
    "D12-bell": (many(b'{"prompt": "\\b", "completion": "a"}\n'), "content.control_chars"),
    "D13-bidi": (many({"prompt": "a\u202eb", "completion": "a"}), "content.invisible_chars"),
    "D13-zero-width": (many('{"prompt": "\u200b", "completion": "a"}\n'.encode()), "content.invisible_chars"),
    "D13-tag": (many('{"prompt": "a\U000e0041", "completion": "a"}\n'.encode()), "content.invisible_chars"),
    "D13-mojibake": (many({"prompt": "caf\u00c3\u00a9", "completion": "a"}), "encoding.mojibake"),
    "D35": (chat(USER, ANSWER, USER) + b"\n", "chat.ends_without_answer"),
    "D40": (chat(USER, ANSWER | {"content": " \n"}) + b"\n", "chat.content_blank"),
    "D40-user": (chat(USER | {"content": ""}, ANSWER) + b"\n", "chat.turn_blank"),
    "D43-chatml": (many({"prompt": "<|im_start|>system", "completion": "a"}), "chat.special_tokens"),
    "D43-llama": (many({"prompt": "[INST] x </s>", "completion": "a"}), "chat.special_tokens"),
    "D48-half": (many(*[PAIR] * 30), "dataset.duplicates"),
    "D52": (LINE, "dataset.too_small"),
    "D84": (many({"prompt": SECRET, "completion": "a"}), "content.possible_secret"),
}  # fmt: skip


@pytest.mark.parametrize(("data", "code"), WARNED.values(), ids=WARNED.keys())
def test_an_odd_file_is_taken_with_a_warning(validate, data, code):
    report = validate(data)

    assert report.valid, report.errors
    assert code in {warning.code for warning in report.warnings}


def test_d52_ten_rows_are_enough(validate):
    rows = [{"prompt": str(number), "completion": "a"} for number in range(10)]

    assert validate(lines(*rows)).warnings == ()


def test_a_secret_is_masked_and_duplicates_have_their_ratio(validate):
    secrets = validate(WARNED["D84"][0])
    repeats = validate(WARNED["D48-half"][0])

    assert SECRET not in secrets.model_dump_json()
    assert "an AWS key, AKIA… of 20 characters" in secrets.warnings[0].message
    [repeated] = repeats.warnings
    assert (repeated.count, repeated.lines) == (29, (2, 3, 4, 5, 6))
    assert "29 rows (58%)" in repeated.message


@pytest.mark.parametrize(
    "data",
    [
        pytest.param(json.dumps([PAIR] * 2).encode(), id="D16"),
        pytest.param('{"prompt": "a\u2028b\u0085c", "completion": "x"}\n'.encode(), id="D26"),
        pytest.param(LINE.replace(b"\n", b"\r\n") + LINE, id="D27"),
        pytest.param(LINE[:-1], id="D28"),
        pytest.param(b'prompt,completion\r\n"=HYPERLINK(""x"")","a\nb"\r\n', id="D59"),
        pytest.param(b"\xef\xbb\xbfprompt,completion\na,b\n\n", id="D4-csv"),
        pytest.param(GZ, id="gzip"),
        pytest.param(ZSTD, id="zstd"),
        pytest.param(gzip.compress(PARQUET), id="gzip-parquet"),
        pytest.param(zstandard.compress(b"prompt,completion\na,b\n"), id="zstd-csv"),
    ],
)
def test_what_only_looks_bad_is_accepted(validate, data):
    assert validate(data).valid


def test_d63_more_row_groups_than_a_footer_should_list_are_refused(tmp_path):
    path = tmp_path / "rows.parquet"
    rows = {"prompt": ["a"] * (MAX_ROW_GROUPS + 1)}
    path.write_bytes(parquet(rows, row_group_size=1, write_statistics=False))

    assert validate_file(path, "rows.parquet").error_counts == {"parquet.too_many_row_groups": 1}


def test_d24_a_line_without_end_is_not_read_past_the_limit(tmp_path):
    path = tmp_path / "sparse.jsonl"
    with path.open("wb") as file:
        file.write(b'{"prompt": "')
        file.truncate(2 * 1024**3)

    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    report = validate_file(path, "sparse.jsonl")

    assert report.error_counts == {"row.too_large": 1}
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 256 * 1024


@pytest.mark.parametrize(
    ("data", "code"),
    [
        pytest.param(LINE * 200, "dataset.too_large", id="D53"),
        pytest.param(gzip.compress(LINE * 100_000), "dataset.decoded_too_large", id="D68-gzip"),
        pytest.param(zstandard.compress(LINE * 100_000), "dataset.decoded_too_large", id="D68-zstd"),
        pytest.param(parquet({"text": ["x" * 9000] * 100}), "dataset.decoded_too_large", id="D61"),
    ],
)  # fmt: skip
def test_more_bytes_than_were_allowed_are_refused(validate, data, code):
    assert validate(data, max_decoded_bytes=5000).error_counts == {code: 1}


BOMB = """
    import re, sys
    from pathlib import Path
    from luthier.datasets.reading import Reading
    from luthier.datasets.validate import validate_file

    report = validate_file(Path(sys.argv[1]), "bomb", reading=Reading(max_decoded_bytes=768 * 1024**2))
    # getrusage would count the parent too, from the moment between fork and exec.
    peak_kb = re.search(r"VmHWM:\\s+(\\d+)", Path("/proc/self/status").read_text())[1]
    print(*report.error_counts, int(peak_kb) // 1024)
"""


def test_d61_a_parquet_bomb_is_stopped_while_it_streams(tmp_path):
    # A dictionary holds the one string of 5 MB, so that ten thousand rows of it are some kilobytes each.
    path = tmp_path / "bomb.parquet"
    rows = pa.array(["x" * 5_000_000], pa.large_string()).take(pa.array([0] * 64))
    schema = pa.schema([("prompt", pa.large_string()), ("completion", pa.string())])
    with pq.ParquetWriter(path, schema, compression="zstd", use_dictionary=["prompt"]) as writer:
        for _ in range(4):
            writer.write_batch(pa.record_batch([rows, pa.array(["a"] * 64)], schema=schema))

    command = [sys.executable, "-c", textwrap.dedent(BOMB), str(path)]
    code, peak_mb = subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()

    assert path.stat().st_size < 1_000_000
    assert code == "dataset.decoded_too_large"
    assert int(peak_mb) < 512


def test_d49_rows_of_the_validation_file_are_found_in_the_training_file(tmp_path):
    train, held_out = tmp_path / "train.jsonl", tmp_path / "validation.csv"
    train.write_bytes(many(PAIR))
    held_out.write_bytes(b"prompt,completion\nhi,hello\nquestion 3,a\n")

    report = validate_file(train, "train.jsonl", against=(held_out, PLAIN))

    [leak] = [warning for warning in report.warnings if warning.code == "split.leakage"]
    assert (leak.count, leak.lines) == (2, (1, 5))
