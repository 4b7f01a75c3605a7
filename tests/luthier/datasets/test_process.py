"""The child process: its events, files and exit codes."""

import json
import os
import signal
import subprocess
import sys

import pyarrow.parquet as pq
import pytest

from luthier.artifacts import sha256_of
from luthier.errors import ExitCode
from luthier.events import read_events
from luthier.spec import PreparedData

PROGRAM_FAULT = 1


@pytest.fixture
def run(tmp_path, model_folder):
    """Runs the process on a spec; gives its exit code and its events."""
    folder = tmp_path / "run"
    folder.mkdir()

    def run_spec(kind, **fields):
        spec = {"kind": kind, "job_id": "work-1", "run": 1, "epoch": 1} | fields
        if kind == "prepare":
            model = {"id": "tiny", "path": str(model_folder)}
            spec = {"model": model, "dataset": {}, "max_seq_length": 512} | spec
        (folder / "spec.json").write_text(json.dumps(spec))
        command = [sys.executable, "-P", "-m", "luthier.datasets", str(folder)]
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
        assert bool(done.stderr) == (done.returncode == PROGRAM_FAULT)
        events = [event for event, _ in read_events(folder / "events.jsonl", 0)]
        # How often progress is told depends on the clock.
        return done.returncode, [event for event in events if event.type != "progress_made"]

    return run_spec


def source(path, param="training_file"):
    return {"path": str(path), "filename": path.name, "param": param}


@pytest.fixture
def view(model_folder):
    return {"model": {"id": "tiny", "path": str(model_folder)}, "dataset": {}, "max_seq_length": 64}


PAIR = {"prompt": "hello", "completion": "world"}


def test_preparation_leaves_parquet_files_and_tells_of_them(run, write_rows, tmp_path):
    train = source(write_rows(PAIR, PAIR, {"prompt": "hello " * 600, "completion": "x"}))
    validation = source(write_rows(PAIR | {"prompt": "bye"}, name="eval.jsonl"), "validation_file")

    code, events = run("prepare", train=[train], validation=validation)

    result = events[-1].result
    stats = result.pop("stats")
    prepared = PreparedData.model_validate(result)
    assert code == ExitCode.DONE
    assert prepared.train[0].path == "artifacts/train-000.parquet"
    assert prepared.train[0].sha256 == sha256_of(tmp_path / "run/artifacts/train-000.parquet")
    assert pq.read_metadata(tmp_path / "run/artifacts/validation.parquet").num_rows == 1
    assert stats["train-000"]["truncated_row_count"] == 1
    assert [event.type for event in events] == ["run_started", "phase_changed", "warning_raised", "run_ended"]
    assert events[2].message.startswith("1 of 3 rows of rows.jsonl were cut at 512 tokens (the oldest")


def test_validation_reports_on_an_invalid_file_and_is_done(run, write_rows):
    code, events = run("validate", file=source(write_rows(PAIR, b"{"), "file"))

    assert code == ExitCode.DONE
    assert [event.type for event in events] == ["run_started", "phase_changed", "run_ended"]
    assert events[1].phase == "validating_files"
    assert events[-1].result["report"]["valid"] is False
    assert events[-1].result["message"].startswith("Line 2: ")


NUL = b'{"prompt": "\0", "completion": "b"}'


@pytest.mark.parametrize(("rows", "tokens"), [((PAIR, NUL, PAIR), None), ((PAIR, b"{]", PAIR), 2)])
def test_a_report_comes_also_where_no_model_could_read_to_the_end(run, write_rows, view, rows, tokens):
    code, events = run("validate", file=source(write_rows(*rows), "file"), view=view)

    report = events[-1].result["report"]
    assert (code, report["error_count"], report["errors"][0]["line"]) == (ExitCode.DONE, 1, 2)
    assert (report["tokens"] and report["tokens"]["measured_row_count"]) == tokens


def test_a_template_that_there_is_not_ends_validation_for_a_model(run, write_rows, view):
    view["dataset"] = {"template": "qwne"}

    code, events = run("validate", file=source(write_rows(PAIR), "file"), view=view)

    assert (code, events[-1].param) == (ExitCode.BAD_DATA, "dataset.template")


@pytest.mark.parametrize(
    "read_by",
    [
        {"columns": {"prompt": "ask", "completion": "say"}},
        {"entry": {"formatting": "alpaca", "columns": {"prompt": "ask", "response": "say"}, "tags": {}}},
        # Columns go before an entry.
        {
            "columns": {"prompt": "ask", "completion": "say"},
            "entry": {"formatting": "alpaca", "columns": {"prompt": "gone"}, "tags": {}},
        },
    ],
)
def test_every_look_reads_by_columns_and_entries(run, write_rows, view, read_by):
    file = source(write_rows({"ask": "hello", "say": "world"}), "file") | read_by

    report = run("validate", file=file, view=view)[1][-1].result["report"]
    [row] = run("preview", file=file, view=view)[1][-1].result["rows"]
    [measured] = run("measure", files=[file], view=view)[1][-1].result["files"]
    [warning] = leaks_in(run("prepare", train=[file], validation=file)[1])

    assert (report["valid"], report["tokens"]["measured_row_count"]) == (True, 1)
    assert (row["warnings"], measured["bad_row_count"], warning[1]) == ([], 0, 1)


def test_a_preview_a_measurement_and_a_conversion_are_served(run, write_rows, view, tmp_path):
    file = source(write_rows(PAIR, PAIR), "file")

    results = [
        run(kind, file=file, **fields)[1][-1].result
        for kind, fields in [("preview", {"view": view, "count": 1}), ("convert", {})]
    ]
    measured = run("measure", files=[file], view=view)[1][-1].result
    report = run("validate", file=file, view=view)[1][-1].result["report"]

    assert [row["line"] for row in results[0]["rows"]] == [1]
    assert results[1] == {"row_count": 2}
    assert (
        json.loads((tmp_path / "run/artifacts/rows.jsonl").read_text().splitlines()[0])["output"] == "world"
    )
    assert measured["files"][0] == report["tokens"]


def leaks_in(events):
    warnings = (event for event in events if event.type == "warning_raised" and event.code == "split.leakage")
    return [(event.message, event.data["row_count"], event.data["lines"]) for event in warnings]


def test_rows_in_both_files_are_told_whether_or_not_they_were_prepared_before(run, write_rows, tmp_path):
    others = [{"prompt": f"question {number}", "completion": "answer"} for number in range(9)]
    train = source(write_rows(*others, PAIR, PAIR))
    validation = source(write_rows({"ask": "hello", "say": "world"}, name="eval.jsonl"), "validation_file")
    validation["columns"] = {"prompt": "ask", "completion": "say"}

    _, events = run("prepare", train=[train], validation=validation)
    events[-1].result.pop("stats")
    prepared = PreparedData.model_validate(events[-1].result)
    train["prepared"] = prepared.train[0].model_dump()
    validation["prepared"] = prepared.validation.model_dump()
    (tmp_path / "run/events.jsonl").unlink()
    _, again = run("prepare", train=[train], validation=validation)

    [(message, row_count, lines)] = leaks_in(events)
    assert message.startswith("rows.jsonl (lines 10, 11): 2 rows are in the validation file too")
    assert (row_count, lines) == (2, [10, 11])
    assert leaks_in(again) == leaks_in(events)


def test_a_report_tells_what_a_validation_file_has_too(run, write_rows):
    file, other = source(write_rows(PAIR), "file"), source(write_rows(PAIR, name="eval.jsonl"), "file")

    report = run("validate", file=file, against=other)[1][-1].result["report"]

    assert [(item["code"], item["lines"]) for item in report["warnings"]][-1] == ("split.leakage", [1])


def test_what_is_prepared_already_is_handed_on(run, write_rows, tmp_path):
    ready = {
        "path": "/elsewhere/x.parquet",
        "sha256": "0",
        "row_count": 3,
        "token_count": 9,
        "trained_token_count": 4,
    }
    train = [source(write_rows(PAIR)), source(tmp_path / "gone.jsonl") | {"prepared": ready, "weight": 2.0}]

    code, events = run("prepare", train=train)

    data = PreparedData.model_validate({"train": events[-1].result["train"]})
    assert code == ExitCode.DONE
    assert [split.path for split in data.train] == ["artifacts/train-000.parquet", "/elsewhere/x.parquet"]
    assert data.train[1].weight == 2.0
    assert list(events[-1].result["stats"]) == ["train-000"]


def test_bad_rows_are_dropped_where_asked_and_told(run, write_rows):
    train = source(write_rows(PAIR, {"prompt": "x"}, b"[1]", PAIR))

    code, events = run("prepare", train=[train], dataset={"on_bad_row": "drop"})

    [warning] = [event for event in events if event.type == "warning_raised"]
    assert code == ExitCode.DONE
    assert (warning.code, warning.data["row_count"]) == ("rows_dropped_bad", 2)
    assert warning.message.startswith(
        "2 of 4 rows of rows.jsonl were dropped: bad. Line 2: completion is missing"
    )


def test_a_named_template_goes_along_and_its_misfit_is_told(run, write_rows):
    code, events = run("prepare", train=[source(write_rows(PAIR))], dataset={"template": "llama3"})

    warnings = [event.code for event in events if event.type == "warning_raised"]
    assert code == ExitCode.DONE
    assert warnings == ["template_mismatch"] * 2
    assert "<|start_header_id|>" in events[-1].result["chat_template"]


def test_a_template_that_there_is_not_is_told_as_a_setting(run, write_rows):
    code, events = run("prepare", train=[source(write_rows(PAIR))], dataset={"template": "qwne"})

    assert (code, events[-1].param) == (ExitCode.BAD_DATA, "dataset.template")
    assert "did you mean 'qwen'" in events[-1].message


def test_an_unexpected_fault_is_told(tmp_path):
    (tmp_path / "spec.json").mkdir()

    done = subprocess.run(
        [sys.executable, "-P", "-m", "luthier.datasets", str(tmp_path)],
        capture_output=True,
        text=True,
        check=False,
    )

    [(ended, _)] = read_events(tmp_path / "events.jsonl", 0)
    assert (done.returncode, ended.outcome, ended.code) == (1, "failed", "server_error")
    assert "IsADirectoryError" in done.stderr


def test_bad_data_fails_preparation_with_the_file_at_fault(run, write_rows):
    train = source(write_rows(PAIR))
    validation = source(write_rows({"prompt": "x"}, name="eval.jsonl"), "validation_file")

    code, events = run("prepare", train=[train], validation=validation)

    ended = events[-1]
    assert code == ExitCode.BAD_DATA
    assert (ended.outcome, ended.code, ended.param) == (
        "failed",
        "invalid_validation_file",
        "validation_file",
    )
    assert ended.message.startswith("Line 1: completion is missing")


def test_a_model_without_tokenizer_is_missing(run, write_rows, tmp_path):
    code, events = run("prepare", train=[source(write_rows(PAIR))], model={"id": "x", "path": str(tmp_path)})

    assert (code, events[-1].code) == (ExitCode.MISSING, "model_not_found")


@pytest.mark.parametrize("fields", [{"max_seq_length": "many"}, {"surprise": 1}, {}])
def test_a_broken_spec_is_told(run, fields):
    code, events = run("prepare", **fields)

    assert (code, events[-1].code) == (ExitCode.BAD_SPEC, "invalid_spec")
    assert "spec.json: " in events[-1].message


def test_a_full_disk_has_its_own_exit_code(run, write_rows, tmp_path):
    artifacts = tmp_path / "run/artifacts"
    artifacts.mkdir()
    (artifacts / "train-000.parquet.tmp").symlink_to("/dev/full")

    code, events = run("prepare", train=[source(write_rows(PAIR))])

    assert (code, events[-1].code) == (ExitCode.DISK_FULL, "disk_full")


def test_what_nobody_foresaw_has_a_last_word(run, write_rows, tmp_path):
    (tmp_path / "run/artifacts").touch()

    code, events = run("prepare", train=[source(write_rows(PAIR))])

    assert (code, events[-1].outcome, events[-1].code) == (PROGRAM_FAULT, "failed", "server_error")
    assert "FileExistsError. The run's log has" in events[-1].message


def test_input_beyond_the_memory_limit_has_a_last_word(tmp_path):
    with (tmp_path / "spec.json").open("wb") as file:
        file.truncate(9 * 1024**3)  # a hole, which takes no disk

    command = [sys.executable, "-P", "-m", "luthier.datasets", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)

    [(ended, _)] = read_events(tmp_path / "events.jsonl", 0)
    assert (done.returncode, ended.code) == (PROGRAM_FAULT, "server_error")
    assert "MemoryError" in ended.message
    assert done.stderr.endswith("MemoryError\n")


def test_the_memory_limit_holds_on_a_machine_of_many_cores(run, write_rows, monkeypatch):
    monkeypatch.setenv("RAYON_NUM_THREADS", "256")
    # As many heaps as the C library makes there; each reserves address space.
    monkeypatch.setenv("MALLOC_ARENA_MAX", "2048")

    code, _ = run("prepare", train=[source(write_rows(*[PAIR] * 600))])

    assert code == ExitCode.DONE


def test_sigterm_stops_the_work(tmp_path):
    os.mkfifo(tmp_path / "spec.json")
    child = subprocess.Popen([sys.executable, "-P", "-m", "luthier.datasets", str(tmp_path)])

    # Opening waits for the reader, so the child is at work, and it stays in its read.
    with (tmp_path / "spec.json").open("wb"):
        child.send_signal(signal.SIGTERM)
        code = child.wait(timeout=60)

    [(ended, _)] = read_events(tmp_path / "events.jsonl", 0)
    assert (code, ended.outcome) == (ExitCode.STOPPED, "stopped")
