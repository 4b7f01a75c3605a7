"""The process as its supervisor sees it: folder in, events and exit code out."""

import json
import os
import signal
import subprocess
import sys

from luthier import artifacts
from luthier.errors import ExitCode

COMMAND = [sys.executable, "-P", "-m", "trainer"]


def exit_code_of(folder):
    return subprocess.run([*COMMAND, str(folder)], check=False, stderr=subprocess.DEVNULL).returncode


def test_sigterm_ends_the_step_saves_and_exits_85(make_run):
    """`events.jsonl` is a pipe here, so that the test reads each event as it is written."""
    run = make_run(max_steps=100_000)
    os.mkfifo(run.folder / "events.jsonl")
    process = subprocess.Popen([*COMMAND, str(run.folder)], stdout=subprocess.DEVNULL)

    with (run.folder / "events.jsonl").open() as pipe:
        events = []
        for line in pipe:
            events.append(json.loads(line))
            if events[-1]["type"] == "step_logged" and events[-1]["step"] == 2:
                process.send_signal(signal.SIGTERM)

    assert process.wait() == ExitCode.STOPPED
    assert events[-1]["outcome"] == "stopped"
    assert artifacts.verify(run.checkpoint(events[-1]["step"])).meta["step"] == events[-1]["step"]


def test_a_bad_spec_exits_64_and_names_the_field(make_run, edit_json):
    run = make_run()
    edit_json(run.folder / "spec.json", model={"id": "tiny"})

    exit_code = exit_code_of(run.folder)

    (ended,) = run.events("run_ended")
    assert exit_code == ExitCode.BAD_SPEC
    assert (ended.outcome, ended.code, ended.param) == ("failed", "invalid_spec", "model.path")
    assert "Field required" in ended.message


def test_a_folder_without_a_spec_exits_64(tmp_path):
    assert exit_code_of(tmp_path) == ExitCode.BAD_SPEC
