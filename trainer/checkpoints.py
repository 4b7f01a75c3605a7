"""Checkpoints of one run: saved whole or not at all, and enough to go on as if nothing had happened.

A checkpoint is a folder `step-000500` with what was trained (`adapter/` as PEFT has it, or `model/`), the
optimizer's tensors and torch's random state as safetensors, and all the rest in `state.json`;
`luthier.artifacts` seals and publishes it. There are no pickles: reading one must never run code.

The newest `save_total_limit` of them are kept, and the best beside them: the one whose weights had the lowest
loss on the validation split. With a limit of 1, that is one folder where the last is the best, and else two.
With early stopping, every new best is saved, and each checkpoint carries the best weights in `best/` where
they are not its own, so that a resumed run can end with them.
"""

import json
import re
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from luthier import artifacts
from luthier.errors import ExitCode, JobFailure
from luthier.events import CheckpointSaved, EventWriter
from luthier.spec import TrainSpec
from luthier.status import Phase
from trainer import methods, optimizer_state, random_state, versions
from trainer.engines import Engine
from trainer.journal import Journal
from trainer.model import trainable

OPTIMIZER, RANDOM, STATE = "optimizer.safetensors", "random.safetensors", "state.json"
BEST = "best"
_FORMAT = 2
_NAME = re.compile(r"step-(\d+)")

# What a resumed run may set anew; every other hyperparameter has shaped the weights or the order already.
_MAY_DIFFER = frozenset(
    {
        "n_epochs",
        "epochs",
        "max_steps",
        "step_shares",
        "eval_steps",
        "save_steps",
        "save_total_limit",
        "logging_steps",
        "gradient_checkpointing",
        "max_seq_length",
        "samples",
        "auto_fit",
        "early_stopping",
    }
)


@dataclass(frozen=True)
class Checkpoint:
    """A folder whose manifest holds, and what its `state.json` says."""

    folder: Path
    state: dict[str, Any]

    @property
    def step(self) -> int:
        return int(self.state["step"])

    @property
    def best(self) -> "Best | None":
        """The best weights up to then, as far as they are here."""
        known = self.state["best"]
        if known is None:
            return None
        folder = self.folder if known["step"] == self.step else self.folder / BEST
        return Best(known["step"], known["eval_loss"], folder if folder.is_dir() else None)


@dataclass(frozen=True)
class Best:
    """The saved weights with the lowest loss on the validation split; of equals, the earliest.

    Attributes:
        folder: where `methods.load` finds them; None where an earlier run saved them and they are not here.
    """

    step: int
    eval_loss: float
    folder: Path | None


def open_checkpoint(spec: TrainSpec) -> Checkpoint | None:
    """The checkpoint that a spec resumes from, verified; None where the run starts at step 0.

    Raises:
        JobFailure: it is damaged, or belongs to a run with other settings, data or base model.
    """
    if spec.resume_from is None:
        return None
    folder = Path(spec.resume_from)
    try:
        artifacts.verify(folder)
        state = json.loads((folder / STATE).read_text(encoding="utf-8"))
    except (artifacts.ManifestError, OSError, ValueError) as error:
        raise _cannot_resume(f"the checkpoint is damaged: {error}") from error
    if state.get("format") != _FORMAT:
        raise _cannot_resume(f"its format is {state.get('format')} and this version reads {_FORMAT}")
    there, here = state["made_from"], _made_from(spec)
    differing = [
        f"{name} was {there.get(name)} and is {here[name]}" for name in here if there.get(name) != here[name]
    ]
    if differing:
        raise _cannot_resume("; ".join(differing))
    return Checkpoint(folder, state)


def restore(checkpoint: Checkpoint, engine: Engine, journal: Journal) -> None:
    """Put everything back; the random state comes last, so nothing may be drawn between this and a step.

    Raises:
        JobFailure: the tensors do not fit the model.
    """
    state = checkpoint.state
    try:
        methods.load(engine.model, checkpoint.folder)
        optimizer_state.restore(
            engine.optimizer,
            trainable(engine.model),
            load_file(checkpoint.folder / OPTIMIZER),
            state["optimizer"],
        )
    except (KeyError, RuntimeError, ValueError, OSError, SafetensorError) as error:
        raise _cannot_resume(f"its tensors do not fit the model: {error}") from error
    engine.scheduler.load_state_dict(state["scheduler"])
    engine.scaler.load_state_dict(state["scaler"])
    journal.restore(state["journal"])
    random_state.restore(load_file(checkpoint.folder / RANDOM), state["random"])


class Checkpoints:
    """The checkpoints that one run leaves under `checkpoints/` of its folder.

    Args:
        resumed: the checkpoint that the run goes on from; its step is not saved again.
        clock: seconds, for `save_seconds`.
    Attributes:
        best: of those saved so far, by this run and those before it; None where none was evaluated.
    """

    def __init__(
        self,
        *,
        run_folder: Path,
        spec: TrainSpec,
        engine: Engine,
        journal: Journal,
        events: EventWriter,
        resumed: Checkpoint | None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.best = resumed.best if resumed else None
        self._run_folder, self._folder = run_folder, run_folder / "checkpoints"
        self._spec, self._engine, self._journal, self._events = spec, engine, journal, events
        self._last_step, self._last_folder = (resumed.step, resumed.folder) if resumed else (0, None)
        self._clock, self._saved_at = clock, clock()

    @property
    def last_step(self) -> int:
        """The step of the newest checkpoint; 0 where there is none."""
        return self._last_step

    def is_due(self, step: int) -> bool:
        """Whether one belongs after `step`: by count, by time, as the last, or as the one to go back to."""
        settings = self._spec.hyperparameters
        return (
            step % settings.save_steps == 0
            or step == settings.max_steps
            or self._clock() - self._saved_at >= self._spec.save_seconds
            or (settings.early_stopping is not None and self._is_best(step))
        )

    def save(self, step: int, *, keeps_older: bool = False) -> None:
        """Publish a checkpoint, tell it, then drop what is neither among the newest nor the best.

        With `keeps_older` nothing is dropped, for weights that nobody has found good yet.

        Where the weights of `step` are saved already, only an evaluation of them that has come since counts.
        On any error the older ones stay as they are.
        """
        if step == self._last_step:
            if self._last_folder is not None:
                self.best = self._best_with(step, self._last_folder)
            return
        self._journal.enter(Phase.SAVING)
        final = self._folder / f"step-{step:06d}"
        temporary = final.with_suffix(".tmp")
        shutil.rmtree(temporary, ignore_errors=True)
        best = self._best_with(step, final)
        try:
            self._write(temporary, step, best)
            artifacts.publish(temporary, final, self._meta(step, best))
        except BaseException:
            shutil.rmtree(temporary, ignore_errors=True)
            raise
        self.best, self._last_step, self._last_folder = _moved_to(final, best), step, final
        self._saved_at = self._clock()
        path = final.relative_to(self._run_folder).as_posix()
        self._events.write(CheckpointSaved(step=step, path=path, keeps_older=keeps_older))
        if not keeps_older:
            self._prune()

    def restore_best(self) -> int | None:
        """Put the best weights into the engine's model; optimizer and schedule stay those of the last step.

        Returns:
            Their step, or None, with everything as it is, where no best is known or it is not here.
        """
        if self.best is None or self.best.folder is None:
            return None
        if self.best.step != self._last_step:
            methods.load(self._engine.model, self.best.folder)
        return self.best.step

    def _is_best(self, step: int) -> bool:
        loss = self._eval_loss(step)
        return loss is not None and (self.best is None or loss < self.best.eval_loss)

    def _best_with(self, step: int, folder: Path) -> Best | None:
        """The best once `step` is saved in `folder`."""
        loss = self._eval_loss(step)
        return Best(step, loss, folder) if loss is not None and self._is_best(step) else self.best

    def _eval_loss(self, step: int) -> float | None:
        """The loss of the weights of this very step, where they were evaluated."""
        return next((event.eval_loss for event in self._journal.evals if event.step == step), None)

    def _write(self, folder: Path, step: int, best: Best | None) -> None:
        methods.save(self._engine.model, folder, self._spec.model)
        if self._spec.hyperparameters.early_stopping and best and best.step != step and best.folder:
            _copy_weights(best.folder, folder / BEST)
        tensors, optimizer = optimizer_state.state_of(self._engine.optimizer, trainable(self._engine.model))
        save_file(tensors, folder / OPTIMIZER)
        random_tensors, random_values = random_state.capture()
        save_file(random_tensors, folder / RANDOM)
        state = {
            "format": _FORMAT,
            "step": step,
            "best": {"step": best.step, "eval_loss": best.eval_loss} if best else None,
            "made_from": _made_from(self._spec),
            "optimizer": optimizer,
            "scheduler": self._engine.scheduler.state_dict(),
            "scaler": self._engine.scaler.state_dict(),
            "random": random_values,
            "journal": self._journal.state(),
            "versions": versions.library_versions(),
        }
        (folder / STATE).write_text(json.dumps(state, allow_nan=False) + "\n", encoding="utf-8")

    def _meta(self, step: int, best: Best | None) -> dict[str, Any]:
        """What a reader of the manifest alone should know."""
        last_step = self._journal.steps[-1] if self._journal.steps else None
        return {
            "kind": "checkpoint",
            "job_id": self._spec.job_id,
            "run": self._spec.run,
            "step": step,
            "trained_token_count": self._journal.trained_token_count,
            "train_loss": last_step.train_loss if last_step else None,
            "eval_loss": self._eval_loss(step),
            "is_best": best is not None and best.step == step,
        }

    def _prune(self) -> None:
        """A folder is renamed before it is emptied: what bears a final name is always whole.

        Steps beyond this one are of a run that this one does not go on from; they do not count as newer. Half
        a checkpoint is of a run that was killed.
        """
        names = [_NAME.fullmatch(path.name) for path in self._folder.iterdir()]
        whole = sorted((int(name[1]), self._folder / name[0]) for name in names if name)
        passed = [(step, folder) for step, folder in whole if step <= self._last_step]
        for step, folder in passed[: -self._spec.hyperparameters.save_total_limit]:
            if self.best is None or step != self.best.step:
                folder.rename(folder.with_suffix(".tmp"))
        for half in self._folder.glob("step-*.tmp"):
            shutil.rmtree(half)


def _moved_to(folder: Path, best: Best | None) -> Best | None:
    """The best weights as the newest checkpoint holds them; the one that held them before may go."""
    copy = folder / BEST
    return replace(best, folder=copy) if best and copy.is_dir() else best


def _copy_weights(source: Path, target: Path) -> None:
    """Copy what was trained out of a checkpoint, without what only going on from it needs."""
    for name in (methods.ADAPTER, methods.MODEL):
        if (source / name).is_dir():
            shutil.copytree(source / name, target / name)


def _made_from(spec: TrainSpec) -> dict[str, Any]:
    """What must be the same for a checkpoint to be of use."""
    may_differ = set(_MAY_DIFFER)
    if spec.hyperparameters.packing:
        # The length of packed rows decides which examples share one, and so the order.
        may_differ.remove("max_seq_length")
    settings = spec.hyperparameters.model_dump(mode="json", exclude=may_differ)
    validation = spec.data.validation.sha256 if spec.data.validation else None
    return settings | {
        "model": spec.model.id,
        "revision": spec.model.revision,
        "training_data": [split.sha256 for split in spec.data.train],
        "weights": [split.weight for split in spec.data.train],
        "validation_data": validation,
    }


def _cannot_resume(reason: str) -> JobFailure:
    return JobFailure(
        f"The run cannot go on from its checkpoint: {reason}. Start it anew without resume_from",
        "invalid_spec",
        ExitCode.BAD_SPEC,
        "resume_from",
    )
