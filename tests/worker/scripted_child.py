"""A child process that behaves as told: `python scripted_child.py BEHAVIOUR RUN_FOLDER`.

It keeps the contract of a run folder with the project's own code, and does no work.
"""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from luthier import events
from luthier.artifacts import publish, sha256_of
from luthier.errors import ExitCode

if sys.argv[1] == "mute":
    time.sleep(600)
behaviour, folder = sys.argv[1], Path(sys.argv[2])
writer = events.EventWriter(folder / "events.jsonl")
spec = json.loads((folder / "spec.json").read_bytes())
resumed = spec.get("resume_from")
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
    """What preparation leaves: a file for each source that was not prepared before."""
    (folder / "artifacts").mkdir()
    train = [prepared(f"train-{number:03d}", source) for number, source in enumerate(spec["train"])]
    validation = prepared("validation", spec["validation"]) if spec["validation"] else None
    if spec["validation"]:
        writer.write(events.WarningRaised(code="split.leakage", message="2 rows are in both"))
    stats = {
        f"train-{number:03d}": {"read_row_count": 64, "entry": source["entry"], "columns": source["columns"]}
        for number, source in enumerate(spec["train"])
    }
    for source in [*spec["train"], *([spec["validation"]] if spec["validation"] else [])]:
        if source["prepared"] is None:
            about = {"param": source["param"], "filename": source["filename"]}
            warn(f"2 of 64 rows of {source['filename']} were cut", **about)
    warn("The template is another one", param="dataset.template")
    end("done", ExitCode.DONE, result={"train": train, "validation": validation, "stats": stats})


def warn(message: str, **data: Any) -> None:
    """A warning of preparation."""
    writer.write(events.WarningRaised(code="rows_truncated", message=message, data=data))


def prepared(name: str, source: dict[str, Any]) -> dict[str, Any]:
    """One split."""
    if source["prepared"] is not None:
        return dict(source["prepared"])
    table = folder / "artifacts" / f"{name}.parquet"
    table.write_bytes(b"rows")
    numbers = {"row_count": 64, "token_count": 640, "trained_token_count": 320}
    place = {"path": f"artifacts/{name}.parquet", "sha256": sha256_of(table), "weight": source["weight"]}
    return place | numbers


def look() -> None:
    """What a preview, a report and a measurement find; a filename asks for trouble."""
    files = spec.get("files") or [spec["file"]]
    if files[0]["filename"].startswith("broken"):
        end("failed", ExitCode.BAD_DATA, code="invalid_training_file", message="Line 3: no", param="file")
    tokens = {"row_count": 4, "measured_row_count": 4, "is_exact": True, "token_count": 40, "longest": 12}
    tokens |= {"trained_token_count": 20}
    rows = [{"line": spec.get("offset", 0) + number + 1} for number in range(spec.get("count", 0))]
    report = {"valid": True, "row_count": 4, "tokens": tokens if spec.get("view") else None}
    found = {"report": report, "message": None, "rows": rows, "files": [tokens for _ in files]}
    end("done", ExitCode.DONE, result=found)


def convert() -> None:
    """What a conversion leaves."""
    (folder / "artifacts").mkdir()
    row = {"instruction": "Q", "input": "", "output": "A"}
    (folder / "artifacts" / "rows.jsonl").write_text(f"{json.dumps(row)}\n", encoding="utf-8")
    if spec["file"]["filename"].startswith("broken"):
        end("failed", ExitCode.BAD_DATA, code="invalid_training_file", message="Line 3: no", param="file")
    end("done", ExitCode.DONE, result={"row_count": 1})


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
    result = {"eval_loss": 1.0, "adapter_from": spec["adapter_from"]}
    result |= {"files": spec["files"], "rules": spec["rules"]}
    end("done", ExitCode.DONE, trained_token_count=12, result=result)


def stop(_number: int, _frame: object) -> None:
    """Keep the contract of SIGTERM."""
    save(3)
    end("stopped", ExitCode.STOPPED)


def wait() -> None:
    """Until a signal comes."""
    while True:
        time.sleep(0.05)


def take_steps(count: int) -> None:
    """Steps of 20 ms."""
    writer.write(events.PhaseChanged(phase="training"))
    for step in range(1, count + 1):
        time.sleep(0.02)
        writer.write(events.StepLogged(step=step, total_steps=9, epoch=0.1, train_loss=1.0))


def stop_slowly(_number: int, _frame: object) -> None:
    """As a trainer whose step takes for ever: only a second SIGTERM ends it."""
    signal.signal(signal.SIGTERM, lambda *_: os._exit(ExitCode.STOPPED))
    wait()


def leave_daemon() -> None:
    """A process that detaches itself as daemons do; its pid goes beside the data folder."""
    if os.fork():
        os.wait()
        return
    os.setsid()
    if os.fork():
        os._exit(0)
    os.closerange(0, 64)
    (folder.parents[3] / "daemon.pid").write_text(str(os.getpid()), encoding="utf-8")
    time.sleep(600)


def wait_for_daemon() -> None:
    """Until it has detached itself."""
    while not (folder.parents[3] / "daemon.pid").exists():
        time.sleep(0.01)


def do() -> None:
    """What the kind of work asks for."""
    {"prepare": prepare, "train": train, "convert": convert}.get(spec["kind"], look)()


writer.write(events.RunStarted(resumed_from_step=start))
print("the child speaks", flush=True)
match behaviour:
    case "done":
        do()
    case _ if behaviour.startswith("until "):
        writer.write(events.PhaseChanged(phase="tokenizing"))
        while not Path(behaviour.removeprefix("until ")).exists():
            time.sleep(0.02)
        do()
    case "wait":
        signal.signal(signal.SIGTERM, stop)
        writer.write(events.PhaseChanged(phase="training"))
        while True:
            time.sleep(0.05)
    case "deaf":
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
    case "out of memory":
        facts = {"step": 3, "peak_memory_bytes": 8 << 30, "longest_row_tokens": 900, "micro_batch_rows": 4}
        details = [
            {"loc": "memory", "message": "Memory ran out at step 3", **facts},
            {"loc": "qlora.max_seq_length", "message": "set max_seq_length to 512 (now 1024)"},
        ]
        why = {"code": "out_of_memory", "message": "Out of memory", "param": "qlora.max_seq_length"}
        end("failed", ExitCode.GPU_OUT_OF_MEMORY, details=details, **why)
    case "disk full":
        end("failed", ExitCode.DISK_FULL, code="disk_full", message="The disk of the worker is full")
    case "speechless":
        sys.exit(1)
    case "endless step":
        signal.signal(signal.SIGTERM, stop_slowly)
        writer.write(events.PhaseChanged(phase="training"))
        wait()
    case "hangs":
        take_steps(9)
        wait()
    case "loads":
        writer.write(events.PhaseChanged(phase="loading_model"))
        until = time.process_time() + 3
        while time.process_time() < until:
            pass
        train()
    case "evaluates":
        take_steps(9)
        writer.write(events.PhaseChanged(phase="evaluating"))
        for _ in range(30):
            time.sleep(0.1)
            (folder / "alive").touch()
        train()
    case "daemon":
        leave_daemon()
        wait_for_daemon()
        train()
    case "daemon and wait":
        leave_daemon()
        wait_for_daemon()
        writer.write(events.PhaseChanged(phase="training"))
        wait()
    case "gigabyte":
        subprocess.run(["head", "-c", "1000000000", "/dev/zero"], check=True)
        train()
    case "hungry":
        held = b"x" * (200 << 20)
        wait()
    case "gpu fault":
        end("failed", ExitCode.GPU_FAULT, code="gpu_fault", message="Uncorrectable ECC error")
    case "program fault":
        end("failed", ExitCode.GPU_FAULT, code="gpu_fault", message="CUDA error: an illegal memory access")
    case "flood":
        for _ in range(3000):
            print("x" * 99)
        train()
