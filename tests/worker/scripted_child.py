"""A child process that behaves as told: `python scripted_child.py BEHAVIOUR RUN_FOLDER`.

It keeps the contract of a run folder with the project's own code, and does no work.
"""

import os
import signal
import sys
import time
from pathlib import Path

from luthier import events
from luthier.artifacts import publish, sha256_of
from luthier.errors import ExitCode

behaviour, folder = sys.argv[1], Path(sys.argv[2])
writer = events.EventWriter(folder / "events.jsonl")
resumed = (folder / "spec.json").read_text(encoding="utf-8").partition('"resume_from": "')[2]
start = int(resumed.split("step-")[1][:6]) if resumed else 0


def end(outcome: str, exit_code: ExitCode, **fields: object) -> None:
    """The last line, then the exit."""
    writer.write(events.RunEnded.model_validate({"outcome": outcome, "step": 4} | fields))
    sys.exit(exit_code)


def save(step: int) -> None:
    """A checkpoint with one file."""
    name = f"checkpoints/step-{step:06d}"
    temporary = folder / f"{name}.tmp"
    temporary.mkdir(parents=True)
    (temporary / "adapter.txt").write_text(f"step {step}", encoding="utf-8")
    publish(temporary, folder / name, {"step": step, "train_loss": 4.0 - step, "eval_loss": None})
    writer.write(events.CheckpointSaved(step=step, path=name))


def prepare() -> None:
    """What preparation leaves."""
    table = folder / "artifacts" / "train.parquet"
    table.parent.mkdir(parents=True)
    table.write_bytes(b"rows")
    split = {
        "path": "artifacts/train.parquet",
        "sha256": sha256_of(table),
        "row_count": 64,
        "token_count": 640,
        "trained_token_count": 320,
    }
    end("done", ExitCode.DONE, result={"train": [split], "validation": None, "rows_read": 64})


def train() -> None:
    """Two steps, a checkpoint, two steps, artifacts."""
    for step in range(start + 1, 5):
        writer.write(events.StepLogged(step=step, total_steps=4, epoch=step / 4, train_loss=4.0 - step))
        if step == 2:
            save(step)
    artifacts = folder / "artifacts"
    artifacts.mkdir()
    (artifacts / "metrics.csv").write_text("step,train_loss\n1,3.0\n", encoding="utf-8")
    (artifacts / "adapter").mkdir()
    (artifacts / "adapter" / "adapter_config.json").write_text("{}", encoding="utf-8")
    end("done", ExitCode.DONE, trained_token_count=12, result={"eval_loss": 1.0})


def stop(_number: int, _frame: object) -> None:
    """Keep the contract of SIGTERM."""
    save(3)
    end("stopped", ExitCode.STOPPED)


writer.write(events.RunStarted(resumed_from_step=start))
print("the child speaks", flush=True)
match behaviour:
    case "done" if '"kind": "prepare"' in (folder / "spec.json").read_text(encoding="utf-8"):
        prepare()
    case "done":
        train()
    case "wait":
        signal.signal(signal.SIGTERM, stop)
        writer.write(events.PhaseChanged(phase="training"))
        while True:
            time.sleep(0.05)
    case "stubborn":
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        while True:
            time.sleep(0.05)
    case "crash":
        save(2)
        os.kill(os.getpid(), signal.SIGSEGV)
    case "bad data":
        end(
            "failed", ExitCode.BAD_DATA, code="invalid_training_file", message="Line 3", param="training_file"
        )
    case "speechless":
        sys.exit(1)
    case "flood":
        for _ in range(3000):
            print("x" * 99)
        train()
