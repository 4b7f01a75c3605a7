"""A tiny model and ready run folders; every test trains for real, on the GPU where there is one."""

import json
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TQDM_DISABLE", "1")

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from tokenizers import Tokenizer

from luthier import artifacts
from luthier.events import AnyEvent, EventWriter, RunEnded, read_events
from luthier.spec import (
    END_ID_KEY,
    BaseModelRef,
    Hyperparameters,
    PreparedData,
    PreparedSplit,
    TrainSpec,
)
from trainer import recipe, samples, versions

Row = tuple[list[int], list[int]]

DEFAULTS: dict[str, Any] = {
    "method": "qlora",
    "n_epochs": 2,
    "batch_size": 2,
    "gradient_accumulation": 2,
    "learning_rate_multiplier": 25.0,
    "learning_rate": 5e-3,
    "lr_scheduler": "linear",
    "warmup_steps": 0,
    "weight_decay": 0.0,
    "max_grad_norm": 1.0,
    "max_steps": 4,
    "eval_steps": 100,
    "save_steps": 100,
    "save_total_limit": 3,
    "logging_steps": 1,
    "r": 8,
    "alpha": 16.0,
    "dropout": 0.0,
    "target_modules": "all-linear",
    "use_rslora": False,
    "quantization": "nf4",
    "double_quant": True,
    "precision": "auto",
    "max_seq_length": 128,
    "gradient_checkpointing": "auto",
    "validation_split": 0.0,
    "seed": 7,
}


def make_settings(**changes: object) -> Hyperparameters:
    """The settings that tests train with, but for what is named."""
    return Hyperparameters.model_validate(DEFAULTS | changes)


@dataclass(frozen=True)
class Run:
    """A run folder with its spec."""

    folder: Path
    spec: TrainSpec

    def train(
        self, should_stop: Callable[[], bool] = lambda: False, *, probes: bool | None = None
    ) -> RunEnded:
        if self.spec.device == "cpu" and not versions.can_train_on_cpu():
            pytest.skip("trl 1.15 trains on CUDA alone")
        events = EventWriter(self.folder / "events.jsonl")
        try:
            return recipe.train(self.spec, self.folder, events, should_stop, probes=probes)
        finally:
            events.close()

    def events(self, kind: str) -> list[AnyEvent]:
        return [event for event, _ in read_events(self.folder / "events.jsonl", 0) if event.type == kind]

    def stop_after(self, step: int) -> Callable[[], bool]:
        """An answer to `should_stop` that turns true once `step` has been logged."""
        return lambda: any(event.step >= step for event in self.events("step_logged"))

    def checkpoint(self, step: int) -> Path:
        return self.folder / "checkpoints" / f"step-{step:06d}"

    def warnings(self) -> dict[str, AnyEvent]:
        """The warnings by code; none is told twice."""
        told = self.events("warning_raised")
        assert len({event.code for event in told}) == len(told)
        return {event.code: event for event in told}

    @property
    def artifacts(self) -> Path:
        return self.folder / "artifacts"

    @property
    def losses(self) -> list[float]:
        return [event.train_loss for event in self.events("step_logged")]


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models") / "tiny"
    samples.make_tiny(folder)
    return folder


@pytest.fixture(scope="session")
def make_rows(tiny: Path) -> Callable[[int], list[Row]]:
    """`make_rows(n)`: n ChatML examples of different lengths, the answer being the target."""
    tokenizer = Tokenizer.from_file(str(tiny / "tokenizer.json"))

    def make(count: int, first: int = 0) -> list[Row]:
        rows = []
        for number in range(first, first + count):
            question = "tune " * (number % 5) + f"How many strings has instrument {number}?"
            prompt = tokenizer.encode(f"<|im_start|>user\n{question}<|im_end|>\n<|im_start|>assistant\n").ids
            answer = tokenizer.encode(f"Instrument {number} has {number % 3} strings.<|im_end|>\n").ids
            rows.append((prompt + answer, [0] * len(prompt) + [1] * len(answer)))
        return rows

    return make


@pytest.fixture
def make_split(tmp_path: Path) -> Callable[..., PreparedSplit]:
    """`make_split(rows)`: a prepared file of them."""
    numbers = iter(range(100))

    def make(rows: list[Row]) -> PreparedSplit:
        path = tmp_path / f"prepared-{next(numbers)}.parquet"
        ids = pa.array([ids for ids, _ in rows], pa.list_(pa.int32()))
        masks = pa.array([mask for _, mask in rows], pa.list_(pa.uint8()))
        table = pa.table({"input_ids": ids, "loss_mask": masks}).replace_schema_metadata({END_ID_KEY: "1"})
        pq.write_table(table, path, row_group_size=7)
        return PreparedSplit(
            path=str(path),
            sha256=artifacts.sha256_of(path),
            row_count=len(rows),
            token_count=sum(len(ids) for ids, _ in rows),
            trained_token_count=sum(sum(mask) for _, mask in rows),
        )

    return make


@pytest.fixture
def make_run(
    tmp_path: Path, tiny: Path, make_rows: Callable[..., list[Row]], make_split: Callable[..., PreparedSplit]
) -> Callable[..., Run]:
    """`make_run(r=4, ...)`: a run of 4 steps of 2 x 2 of 16 examples, but for what is named.

    `files` are several training files, each with its weight.
    """
    numbers = iter(range(100))

    def make(
        *,
        rows: list[Row] | None = None,
        files: Sequence[tuple[list[Row], float]] = (),
        validation: list[Row] | None = None,
        resume_from: Path | None = None,
        adapter_from: Path | None = None,
        model: Path = tiny,
        device: str = "auto",
        save_seconds: float = 600.0,
        **settings: object,
    ) -> Run:
        folder = tmp_path / f"run-{next(numbers)}"
        folder.mkdir()
        data = PreparedData(
            train=tuple(
                make_split(part).model_copy(update={"weight": weight})
                for part, weight in files or [(rows or make_rows(16), 1.0)]
            ),
            validation=make_split(validation) if validation else None,
        )
        spec = TrainSpec(
            job_id="ftjob-test",
            run=1,
            epoch=1,
            model=BaseModelRef(id="tiny", path=str(model)),
            data=data,
            hyperparameters=make_settings(**settings),
            adapter_from=str(adapter_from) if adapter_from else None,
            resume_from=str(resume_from) if resume_from else None,
            device=device,
            save_seconds=save_seconds,
        )
        (folder / "spec.json").write_text(spec.model_dump_json(), encoding="utf-8")
        return Run(folder, spec)

    return make


@pytest.fixture(scope="session")
def same() -> Callable[[object, object], bool]:
    """Whether numbers agree: to the last bit on the CPU, to 1 % on a GPU, which sums in any order."""
    tolerance = 0.01 if torch.cuda.is_available() else 0.0

    def agree(left: object, right: object) -> bool:
        return np.allclose(np.asarray(left), np.asarray(right), rtol=tolerance, atol=tolerance / 10)

    return agree


@pytest.fixture
def edit_json() -> Callable[..., None]:
    """`edit_json(path, key=value)`: change some keys of a JSON file."""

    def edit(path: Path, **changes: object) -> None:
        path.write_text(json.dumps(json.loads(path.read_text()) | changes), encoding="utf-8")

    return edit
