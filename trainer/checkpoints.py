"""Checkpoints of one run: saved whole or not at all, and enough to go on as if nothing had happened.

A checkpoint is a folder `step-000500` with the adapter as PEFT has it, AdamW's moments and torch's random
state as safetensors, and all the rest in `state.json`; `luthier.artifacts` seals and publishes it. There are
no pickles: reading one must never run code. Tensors are named, not numbered, so that engines can exchange
them.
"""

import json
import random
import re
import shutil
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file

from luthier import artifacts
from luthier.errors import ExitCode, JobFailure
from luthier.events import CheckpointSaved, EventWriter
from luthier.spec import TrainSpec
from luthier.status import Phase
from trainer import versions
from trainer.engines import Engine
from trainer.journal import Journal
from trainer.model import load_adapter, save_adapter, trainable

ADAPTER, OPTIMIZER, RANDOM, STATE = "adapter", "optimizer.safetensors", "random.safetensors", "state.json"
_FORMAT = 1
_NAME = re.compile(r"step-(\d+)")

# What a resumed run may set anew; every other hyperparameter has shaped the weights or the order already.
_MAY_DIFFER = frozenset(
    {
        "n_epochs",
        "max_steps",
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
        load_adapter(engine.model, checkpoint.folder / ADAPTER)
        _restore_optimizer(engine, load_file(checkpoint.folder / OPTIMIZER), state["optimizer"])
    except KeyError as error:
        raise _cannot_resume(f"its tensors do not fit the model: {error}") from error
    engine.scheduler.load_state_dict(state["scheduler"])
    journal.restore(state["journal"])
    _restore_random(load_file(checkpoint.folder / RANDOM), state["random"])


class Checkpoints:
    """The checkpoints that one run leaves under `checkpoints/` of its folder.

    Args:
        last_step: the step that the run resumed from, 0 for none; it is not saved again.
        clock: seconds, for `save_seconds`.
    """

    def __init__(
        self,
        *,
        run_folder: Path,
        spec: TrainSpec,
        engine: Engine,
        journal: Journal,
        events: EventWriter,
        last_step: int,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._run_folder, self._folder = run_folder, run_folder / "checkpoints"
        self._spec, self._engine, self._journal, self._events = spec, engine, journal, events
        self._last_step = last_step
        self._clock, self._saved_at = clock, clock()

    @property
    def last_step(self) -> int:
        """The step of the newest checkpoint; 0 where there is none."""
        return self._last_step

    def is_due(self, step: int) -> bool:
        """Whether one belongs after `step`: by count, by time, or because it is the last step."""
        settings = self._spec.hyperparameters
        return (
            step % settings.save_steps == 0
            or step == settings.max_steps
            or self._clock() - self._saved_at >= self._spec.save_seconds
        )

    def save(self, step: int) -> None:
        """Publish a checkpoint, tell it, then drop the oldest beyond `save_total_limit`.

        Nothing where the weights of `step` are saved already. On any error the older ones stay as they are.
        """
        if step == self._last_step:
            return
        self._journal.enter(Phase.SAVING)
        final = self._folder / f"step-{step:06d}"
        temporary = final.with_suffix(".tmp")
        shutil.rmtree(temporary, ignore_errors=True)
        try:
            self._write(temporary, step)
            artifacts.publish(temporary, final, self._meta(step))
        except BaseException:
            shutil.rmtree(temporary, ignore_errors=True)
            raise
        self._last_step, self._saved_at = step, self._clock()
        self._events.write(CheckpointSaved(step=step, path=final.relative_to(self._run_folder).as_posix()))
        self._prune()

    def _write(self, folder: Path, step: int) -> None:
        save_adapter(self._engine.model, folder / ADAPTER, self._spec.model)
        tensors, groups = _optimizer_state(self._engine)
        save_file(tensors, folder / OPTIMIZER)
        random_tensors, random_values = _random_state()
        save_file(random_tensors, folder / RANDOM)
        state = {
            "format": _FORMAT,
            "step": step,
            "made_from": _made_from(self._spec),
            "optimizer": groups,
            "scheduler": self._engine.scheduler.state_dict(),
            "random": random_values,
            "journal": self._journal.state(),
            "versions": versions.library_versions(),
        }
        (folder / STATE).write_text(json.dumps(state, allow_nan=False) + "\n", encoding="utf-8")

    def _meta(self, step: int) -> dict[str, Any]:
        """What a reader of the manifest alone should know."""
        last_step = self._journal.steps[-1] if self._journal.steps else None
        last_eval = self._journal.evals[-1] if self._journal.evals else None
        return {
            "kind": "checkpoint",
            "job_id": self._spec.job_id,
            "run": self._spec.run,
            "step": step,
            "trained_token_count": self._journal.trained_token_count,
            "train_loss": last_step.train_loss if last_step else None,
            "eval_loss": last_eval.eval_loss if last_eval else None,
        }

    def _prune(self) -> None:
        """A folder is renamed before it is emptied: what bears a final name is always whole."""
        names = [_NAME.fullmatch(path.name) for path in self._folder.iterdir()]
        whole = sorted((int(name[1]), self._folder / name[0]) for name in names if name)
        for _, folder in whole[: -self._spec.hyperparameters.save_total_limit]:
            shutil.rmtree(folder.rename(folder.with_suffix(".tmp")))


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


def _moments(engine: Engine) -> Iterator[tuple[str, torch.nn.Parameter]]:
    """Names and parameters in the order in which the optimizer numbers them."""
    names = {id(parameter): name for name, parameter in trainable(engine.model).items()}
    for group in engine.optimizer.param_groups:
        for parameter in group["params"]:
            yield names[id(parameter)], parameter


def _optimizer_state(engine: Engine) -> tuple[dict[str, torch.Tensor], list[dict[str, Any]]]:
    """Tensors named `PARAMETER:KEY`, and the settings of each parameter group."""
    tensors = {
        f"{name}:{key}": value.detach().cpu().contiguous()
        for name, parameter in _moments(engine)
        for key, value in engine.optimizer.state[parameter].items()
    }
    groups = engine.optimizer.state_dict()["param_groups"]
    return tensors, [{key: value for key, value in group.items() if key != "params"} for group in groups]


def _restore_optimizer(
    engine: Engine, tensors: dict[str, torch.Tensor], groups: list[dict[str, Any]]
) -> None:
    found: dict[str, dict[str, torch.Tensor]] = {}
    for name, tensor in tensors.items():
        parameter, _, key = name.rpartition(":")
        found.setdefault(parameter, {})[key] = tensor
    state = {number: found[name] for number, (name, _) in enumerate(_moments(engine))}
    numbered = engine.optimizer.state_dict()["param_groups"]
    merged = [
        current | saved | {"betas": tuple(saved["betas"])}
        for current, saved in zip(numbered, groups, strict=True)
    ]
    engine.optimizer.load_state_dict({"state": state, "param_groups": merged})


def _random_state() -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    tensors = {"torch": torch.get_rng_state()}
    if torch.cuda.is_available():
        tensors["cuda"] = torch.cuda.get_rng_state()
    version, words, gauss = random.getstate()
    name, keys, position, has_gauss, cached = np.random.get_state(legacy=True)
    return tensors, {
        "python": [version, list(words), gauss],
        "numpy": [name, keys.tolist(), position, has_gauss, cached],
    }


def _restore_random(tensors: dict[str, torch.Tensor], values: dict[str, Any]) -> None:
    version, words, gauss = values["python"]
    random.setstate((version, tuple(words), gauss))
    name, keys, position, has_gauss, cached = values["numpy"]
    np.random.set_state((name, np.array(keys, dtype=np.uint32), position, has_gauss, cached))
    torch.set_rng_state(tensors["torch"])
    if "cuda" in tensors and torch.cuda.is_available():
        torch.cuda.set_rng_state(tensors["cuda"])
