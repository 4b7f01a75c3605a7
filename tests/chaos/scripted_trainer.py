"""A trainer that does no work and misbehaves on order: `python -S -P scripted_trainer.py STAGE RUN_FOLDER`.

It keeps the contract of a run folder: real checkpoints, published with their manifests, resumed from, and
left on SIGTERM. `STAGE/orders/<seed>.json` says what the job of that seed shall do. It imports little, since
a thousand of them start in a minute.
"""

import json
import os
import signal
import sys
import time
from pathlib import Path
from typing import Any

from luthier.artifacts import publish, sha256_of

# Big enough that a kill can hit a half-written file.
_WEIGHTS_BYTES = 64 << 10
_LAST_WORDS = {64: "invalid_spec", 65: "invalid_training_file", 66: "model_load_failed", 77: "out_of_memory"}
_LAST_WORDS |= {78: "non_finite_loss"}


class Trainer:
    """One run, from its spec to its exit."""

    def __init__(self, stage: Path, folder: Path) -> None:
        self._folder = folder
        self._spec: dict[str, Any] = json.loads((folder / "spec.json").read_bytes())
        self._events = os.open(folder / "events.jsonl", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        self._stage, self._is_stopping = stage, False
        signal.signal(signal.SIGTERM, self._on_term)

    def run(self) -> None:
        """Do what the kind of work asks for."""
        if self._spec["kind"] == "train":
            self._train()
        else:
            self._tell("run_started")
            self._prepare()

    def _train(self) -> None:
        numbers = self._spec["hyperparameters"]
        order = self._order(numbers["seed"])
        steps = self._resumed_steps()
        self._tell("run_started", resumed_from_step=len(steps))
        self._note_start()
        self._tell("phase_changed", phase="training")
        misbehave(order, self._folder, len(steps))
        total, every = numbers["max_steps"], numbers["save_steps"]
        while len(steps) < total:
            time.sleep(order.get("step_seconds", 0.03))
            steps.append(len(steps) + 1)
            step = len(steps)
            self._tell("step_logged", step=step, total_steps=total, epoch=step / total, train_loss=1 / step)
            if step % every == 0 and step < total:
                self._save(steps)
            if self._is_stopping:
                self._save(steps)
                self._end("stopped", 85, step)
            if order.get("exit_at") == step:
                self._end("failed", order["exit_code"], step)
        self._leave_artifacts(steps)
        self._end("done", 0, total, trained_token_count=total, result={"eval_loss": 1.0})

    def _order(self, seed: int) -> dict[str, Any]:
        path = self._stage / "orders" / f"{seed}.json"
        order: dict[str, Any] = json.loads(path.read_bytes()) if path.exists() else {}
        return order

    def _resumed_steps(self) -> list[int]:
        """The steps that were done before, as the checkpoint tells them."""
        resumed = self._spec.get("resume_from")
        steps: list[int] = json.loads((Path(resumed) / "steps.json").read_bytes()) if resumed else []
        return steps

    def _save(self, steps: list[int]) -> None:
        step = len(steps)
        name = f"checkpoints/step-{step:06d}"
        final, temporary = self._folder / name, self._folder / f"{name}.tmp"
        if not final.exists():
            temporary.mkdir(parents=True, exist_ok=True)
            (temporary / "weights.bin").write_bytes(os.urandom(_WEIGHTS_BYTES))
            (temporary / "steps.json").write_text(json.dumps(steps), encoding="utf-8")
            publish(temporary, final, {"step": step, "train_loss": 1 / step, "eval_loss": None})
        self._tell("checkpoint_saved", step=step, path=name)

    def _leave_artifacts(self, steps: list[int]) -> None:
        artifacts = self._folder / "artifacts"
        (artifacts / "adapter").mkdir(parents=True, exist_ok=True)
        (artifacts / "adapter" / "adapter_config.json").write_text("{}", encoding="utf-8")
        (artifacts / "adapter" / "weights.bin").write_bytes(os.urandom(_WEIGHTS_BYTES))
        (artifacts / "metrics.csv").write_text("step,train_loss\n", encoding="utf-8")
        (artifacts / "all_results.json").write_text(json.dumps({"steps": steps}), encoding="utf-8")

    def _prepare(self) -> None:
        (self._folder / "artifacts").mkdir(exist_ok=True)
        train = [self._rows(f"train-{n:03d}", source) for n, source in enumerate(self._spec["train"])]
        self._end("done", 0, 0, result={"train": train, "validation": None, "stats": {}})

    def _rows(self, name: str, source: dict[str, Any]) -> dict[str, Any]:
        if source["prepared"] is not None:
            return dict(source["prepared"])
        table = self._folder / "artifacts" / f"{name}.parquet"
        table.write_bytes(b"rows")
        counts = {"row_count": 64, "token_count": 640, "trained_token_count": 320}
        return {"path": f"artifacts/{table.name}", "sha256": sha256_of(table), "weight": 1.0} | counts

    def _note_start(self) -> None:
        """When the process began and when it first spoke, for who measures what the service adds."""
        ticks = int(Path("/proc/self/stat").read_text().rsplit(")", 1)[1].split()[19])
        age = time.clock_gettime(time.CLOCK_BOOTTIME) - ticks / os.sysconf("SC_CLK_TCK")
        now = time.time()
        line = json.dumps({"job_id": self._spec["job_id"], "began_at": now - age, "spoke_at": now})
        with (self._stage / "starts.jsonl").open("a", encoding="utf-8") as file:
            file.write(f"{line}\n")

    def _tell(self, kind: str, **fields: object) -> None:
        os.write(self._events, json.dumps({"type": kind, "at": time.time()} | fields).encode() + b"\n")

    def _end(self, outcome: str, code: int, step: int, **fields: object) -> None:
        if outcome == "failed" and code in _LAST_WORDS:
            fields |= {"code": _LAST_WORDS[code], "message": "On order"}
        # The type comes first: a reader tells a result by the beginning of its line.
        if outcome != "failed" or code in _LAST_WORDS:
            self._tell("run_ended", outcome=outcome, step=step, **fields)
        sys.exit(code)

    def _on_term(self, _number: int, _frame: object) -> None:
        self._is_stopping = True


def misbehave(order: dict[str, Any], folder: Path, done_steps: int) -> None:
    """What an order asks for before the first step of this run; `once` only in the run from step 0."""
    if order.get("once") and done_steps > 0:
        return
    match order.get("fault"):
        case "abort":
            os.abort()
        case "stubborn":
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
            signal.pause()
        case "flood":
            for _ in range(order["lines"]):
                os.write(1, b"x" * 99 + b"\n")
        case "daemons":
            _fork_daemons(folder)


def _fork_daemons(folder: Path) -> None:
    """Two processes that leave the session, close what they inherited and hear no SIGTERM."""
    for _ in range(2):
        if os.fork() == 0:
            os.setsid()
            if os.fork() == 0:
                signal.signal(signal.SIGTERM, signal.SIG_IGN)
                os.chdir("/")
                (folder / f"daemon-{os.getpid()}").touch()
                time.sleep(600)
            os._exit(0)


if __name__ == "__main__":
    Trainer(Path(sys.argv[1]), Path(sys.argv[2])).run()
