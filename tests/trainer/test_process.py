"""The process as its supervisor sees it: folder in, events and exit code out."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from luthier import artifacts
from luthier.errors import ExitCode

COMMAND = [sys.executable, "-P", "-m", "trainer"]
SIGNALLED_ON_THE_WAY_OUT = """
import os, signal, sys
from trainer.__main__ import main

class Last:
    def __del__(self, kill=os.kill, process=os.getpid(), number=signal.SIGTERM):
        kill(process, number)

last = Last()
sys.exit(main([]))
"""


def exit_code_of(folder):
    return subprocess.run([*COMMAND, str(folder)], check=False, stderr=subprocess.DEVNULL).returncode


def start(run):
    """The process of a run; `events.jsonl` is a pipe, so that each event is read as it is written."""
    os.mkfifo(run.folder / "events.jsonl")
    return subprocess.Popen([*COMMAND, str(run.folder)], stdout=subprocess.DEVNULL)


def end_with_a_signal(run, moment):
    """Exit code and events of a run that gets SIGTERM at the first event for which `moment` is true."""
    process, events, told = start(run), [], False
    with (run.folder / "events.jsonl").open() as pipe:
        for line in pipe:
            events.append(json.loads(line))
            if not told and moment(events[-1]):
                process.send_signal(signal.SIGTERM)
                told = True
    assert told
    return process.wait(), events


def hears(process):
    """Whether a process handles SIGTERM by now."""
    lines = Path(f"/proc/{process.pid}/status").read_text().splitlines()
    caught = next(int(line.split()[1], 16) for line in lines if line.startswith("SigCgt"))
    return bool(caught & 1 << (signal.SIGTERM - 1))


@pytest.mark.full
def test_sigterm_ends_the_step_saves_and_exits_85(make_run):
    run = make_run(max_steps=100_000)

    exit_code, events = end_with_a_signal(run, lambda event: event.get("step") == 2)

    assert exit_code == ExitCode.STOPPED
    assert events[-1]["outcome"] == "stopped"
    assert artifacts.verify(run.checkpoint(events[-1]["step"])).meta["step"] == events[-1]["step"]


def test_sigterm_before_the_libraries_are_there_is_heard(make_run):
    """The process listens before it reads its spec, and waits at the pipe until the test opens it."""
    run = make_run()
    process = start(run)
    while not hears(process):
        assert process.poll() is None

    process.send_signal(signal.SIGTERM)
    with (run.folder / "events.jsonl").open() as pipe:
        events = [json.loads(line) for line in pipe]

    assert process.wait() == ExitCode.STOPPED
    assert [(event["type"], event["outcome"]) for event in events] == [("run_ended", "stopped")]


@pytest.mark.full
def test_sigterm_while_the_model_is_loaded_stops_before_the_first_step(make_run):
    run = make_run(validation_split=0.25)

    exit_code, events = end_with_a_signal(run, lambda event: event.get("phase") == "loading_model")

    assert exit_code == ExitCode.STOPPED
    assert [event.get("phase") for event in events if event["type"] == "phase_changed"] == ["loading_model"]
    assert not (run.folder / "checkpoints").exists()


@pytest.mark.full
def test_sigterm_while_a_checkpoint_is_written_leaves_it_whole(make_run):
    run = make_run(save_steps=2, max_steps=100)

    exit_code, events = end_with_a_signal(run, lambda event: event.get("phase") == "saving")

    assert (exit_code, events[-1]["outcome"], events[-1]["step"]) == (ExitCode.STOPPED, "stopped", 2)
    assert artifacts.verify(run.checkpoint(2)).meta["step"] == 2
    assert [path.name for path in run.checkpoint(2).parent.iterdir()] == ["step-000002"]


@pytest.mark.full
@pytest.mark.parametrize("kind", ["checkpoint_saved", "run_ended"])
def test_sigterm_after_the_last_step_leaves_the_run_done(make_run, kind):
    """Its artifacts are being written when the signal comes, or have been."""
    run = make_run(max_steps=2)

    exit_code, events = end_with_a_signal(run, lambda event: event["type"] == kind)

    assert (exit_code, events[-1]["outcome"]) == (ExitCode.DONE, "done")
    artifacts.verify(run.artifacts)


def test_a_signal_on_the_way_out_does_not_change_the_exit_code():
    """Python gives handled signals their deadly default back before it takes the modules down."""
    process = subprocess.run(
        [sys.executable, "-c", SIGNALLED_ON_THE_WAY_OUT], check=False, stderr=subprocess.DEVNULL
    )

    assert process.returncode == ExitCode.BAD_SPEC


def test_a_bad_spec_exits_64_and_names_the_field(make_run, edit_json):
    run = make_run()
    edit_json(run.folder / "spec.json", model={"id": "tiny"})

    exit_code = exit_code_of(run.folder)

    (ended,) = run.events("run_ended")
    assert exit_code == ExitCode.BAD_SPEC
    assert (ended.outcome, ended.code, ended.param) == ("failed", "invalid_spec", "model.path")
    assert "Field required" in ended.message


def test_f54_a_spec_of_another_release_is_refused_with_both_versions(make_run, edit_json):
    run = make_run()
    edit_json(run.folder / "spec.json", spec_version=99)

    exit_code = exit_code_of(run.folder)

    (ended,) = run.events("run_ended")
    assert (exit_code, ended.code, ended.param) == (ExitCode.BAD_SPEC, "invalid_spec", "spec_version")
    assert "version 99" in ended.message


def test_a_folder_without_a_spec_exits_64(tmp_path):
    assert exit_code_of(tmp_path) == ExitCode.BAD_SPEC
