"""What runs really take, beside what `luthier.planning` says: peak memory and pace of real training.

Needs the trainer's packages, no hub: `python bench/memory.py --table gpu --json result.json` on a CUDA GPU,
`--table cpu` without one. Each case is a run of a few steps through `trainer.recipe` on random weights of a
real shape and random rows. On a GPU the peak is the allocator's, all cases in one process; on the CPU it is
the process's resident memory, a process a case. `--again result.json` sets what was measured beside what
planning says now.
"""

import argparse
import gc
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import torch
from random_shape import make_model, read
from transformers import AutoConfig, PreTrainedConfig

from luthier import artifacts, events, planning
from luthier.spec import BaseModelRef, Hyperparameters, PreparedData, PreparedSplit, TrainSpec
from trainer import recipe, versions

# As in their config.json. Qwen2.5: arXiv 2412.15115; Llama 3.1: 2407.21783; SmolLM2: 2502.02737.
SHAPES: dict[str, dict[str, Any]] = {
    "tiny": {"model_type": "qwen2", "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2,
             "num_attention_heads": 4, "num_key_value_heads": 2, "vocab_size": 640},
    "135m": {"model_type": "llama", "hidden_size": 576, "intermediate_size": 1536, "num_hidden_layers": 30,
             "num_attention_heads": 9, "num_key_value_heads": 3, "vocab_size": 49152},
    "0.5b": {"model_type": "qwen2", "hidden_size": 896, "intermediate_size": 4864, "num_hidden_layers": 24,
             "num_attention_heads": 14, "num_key_value_heads": 2, "vocab_size": 151936},
    "1.5b": {"model_type": "qwen2", "hidden_size": 1536, "intermediate_size": 8960, "num_hidden_layers": 28,
             "num_attention_heads": 12, "num_key_value_heads": 2, "vocab_size": 151936},
    "8b": {"model_type": "llama", "hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32,
           "num_attention_heads": 32, "num_key_value_heads": 8, "vocab_size": 128256,
           "tie_word_embeddings": False},
}  # fmt: skip
STEPS, WARM_UP_STEPS = 6, 2


@dataclass(frozen=True)
class Case:
    """One run; `settings` are hyperparameters beside those of `spec_of`."""

    model: str
    rows: int
    length: int
    checkpointing: bool
    settings: dict[str, Any]

    @property
    def name(self) -> str:
        extra = " ".join(f"{key} {value}" for key, value in self.settings.items())
        kept = "recomputed" if self.checkpointing else "kept"
        return f"{self.model} {self.rows}x{self.length} {kept} {extra}".strip()


LORA = {"method": "lora", "quantization": "none"}
FULL = {"method": "full", "quantization": "none"}
TABLES = {
    "gpu": (
        Case("1.5b", 8, 512, True, {}),
        Case("1.5b", 8, 512, False, {}),
        Case("1.5b", 1, 512, True, {}),
        Case("1.5b", 4, 2048, True, {}),
        Case("1.5b", 4, 2048, False, {}),
        Case("1.5b", 1, 4096, True, {"r": 64}),
        Case("1.5b", 1, 2048, False, LORA),
        Case("1.5b", 4, 2048, True, LORA),
        Case("0.5b", 8, 512, False, {"r": 8}),
        Case("0.5b", 4, 512, True, FULL),
        Case("0.5b", 4, 512, False, FULL),
        Case("8b", 1, 2048, True, {}),
        Case("8b", 4, 2048, True, {"r": 64}),
        Case("8b", 1, 512, False, {}),
        Case("1.5b", 8, 512, True, {"r": 64, "optimizer": "adamw_8bit"}),
        Case("1.5b", 4, 1024, True, {"quantization": "int8"}),
        Case("1.5b", 4, 1024, False, {"dropout": 0.05}),
        Case("1.5b", 4, 1024, True, {"use_dora": True}),
        Case("0.5b", 8, 512, True, {"gradient_accumulation": 2} | FULL),
        Case("1.5b", 4, 1024, True, {"packing": True}),
    ),
    "cpu": (
        Case("tiny", 2, 128, False, {}),
        Case("tiny", 8, 512, False, {}),
        Case("135m", 1, 128, False, {}),
        Case("135m", 4, 256, False, {}),
        Case("135m", 4, 256, True, {}),
        Case("135m", 4, 256, False, {"precision": "fp32"}),
        Case("135m", 2, 512, False, LORA),
        Case("135m", 2, 256, False, FULL),
    ),
}  # fmt: skip


def main() -> None:
    """Run a table, or read one again, and print it."""
    parser = argparse.ArgumentParser(description=__doc__)
    default = "gpu" if torch.cuda.is_available() else "cpu"
    parser.add_argument("--table", choices=sorted(TABLES), default=default)
    parser.add_argument("--only", default="", help="cases whose name has this in it")
    parser.add_argument("--seconds", type=float, default=3600, help="start no case after so long")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--again", type=Path, help="a file that --json wrote")
    options = parser.parse_args()
    if options.again:
        result = json.loads(options.again.read_text(encoding="utf-8"))
        measured = [(Case(**row["case"]), row) for row in result["cases"]]
        result["cases"] = [row | estimated(case, row) for case, row in measured if "error" not in row]
    else:
        result = {"versions": versions.library_versions(), "cases": []}
        cases = [case for case in TABLES[options.table] if options.only in case.name]
        for row in measure_all(cases, options.seconds):
            result["cases"].append(row)
            if options.json:
                options.json.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    print(table(result["cases"]))
    if options.json:
        options.json.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


def machine() -> str:
    """What it ran on."""
    if torch.cuda.is_available():
        return torch.cuda.get_device_name()
    return f"CPU, {os.cpu_count()} cores, {torch.get_num_threads()} threads"


def measure_all(cases: Iterable[Case], seconds: float) -> Iterable[dict[str, Any]]:
    """The rows of the table one by one; a case that fails is a row with its error."""
    started_at = time.monotonic()
    with tempfile.TemporaryDirectory() as name:
        models: dict[str, Path] = {}
        for number, case in enumerate(cases):
            if time.monotonic() - started_at > seconds:
                return
            try:
                folder = Path(name) / f"run-{number}"
                if case.model not in models:
                    models[case.model] = write_model(Path(name) / case.model, case.model)
                row = measure(folder, spec_of(case, models[case.model], Path(name)))
                row = {"case": asdict(case), "name": case.name, "machine": machine()} | row
                row |= estimated(case, row)
                print(line(row), flush=True)
            except Exception as error:  # noqa: BLE001, the other cases are still worth their time
                traceback.print_exc(limit=3)
                row = {"case": asdict(case), "name": case.name, "error": f"{type(error).__name__}: {error}"}
            yield row


def write_model(folder: Path, name: str) -> Path:
    """Random weights of a shape."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    make_model(folder, config_of(name), device)
    gc.collect()
    if device == "cuda":
        torch.cuda.empty_cache()
    return folder


def config_of(name: str) -> PreTrainedConfig:
    """The config of a shape."""
    given = {"max_position_embeddings": 32768, "tie_word_embeddings": True} | SHAPES[name]
    return AutoConfig.for_model(given.pop("model_type"), bos_token_id=None, eos_token_id=2, **given)


def settings_of(case: Case) -> Hyperparameters:
    """The hyperparameters of a case."""
    settings = {
        "method": "qlora", "n_epochs": 1, "batch_size": case.rows, "gradient_accumulation": 1,
        "learning_rate_multiplier": 1.0, "learning_rate": 2e-4, "lr_scheduler": "linear", "warmup_steps": 2,
        "weight_decay": 0.0, "max_grad_norm": 1.0, "max_steps": STEPS, "eval_steps": 1000, "save_steps": 1000,
        "save_total_limit": 1, "logging_steps": 1, "r": 16, "alpha": 32.0, "dropout": 0.0,
        "target_modules": "all-linear", "use_rslora": False, "quantization": "nf4", "double_quant": True,
        "precision": "auto", "max_seq_length": case.length, "gradient_checkpointing": case.checkpointing,
        "validation_split": 0.0, "seed": 7,
    }  # fmt: skip
    return Hyperparameters.model_validate(settings | case.settings)


def spec_of(case: Case, model: Path, folder: Path) -> TrainSpec:
    """A run of some steps."""
    settings = settings_of(case)
    data = write_rows(folder / "rows.parquet", lengths_of(case))
    return TrainSpec(
        job_id="ftjob-bench",
        run=1,
        epoch=1,
        model=BaseModelRef(id=f"random-{case.model}", path=str(model)),
        data=PreparedData(train=(data,)),
        hyperparameters=settings,
    )


def lengths_of(case: Case) -> list[int]:
    """Tokens of each row; in batches of several rows, every fourth row has half as many as the others."""
    rows = STEPS * case.rows * settings_of(case).gradient_accumulation
    return [case.length // 2 if case.rows > 1 and number % 4 == 3 else case.length for number in range(rows)]


def write_rows(path: Path, lengths: list[int]) -> PreparedSplit:
    """Random rows of these lengths; the second half of each is trained on."""
    generator = torch.Generator().manual_seed(0)
    ids = [torch.randint(3, 640, (length,), generator=generator).tolist() for length in lengths]
    mask = [[0] * (length // 2) + [1] * (length - length // 2) for length in lengths]
    lists = {
        "input_ids": pa.array(ids, pa.list_(pa.int32())),
        "loss_mask": pa.array(mask, pa.list_(pa.uint8())),
    }
    pq.write_table(pa.table(lists), path)
    return PreparedSplit(
        path=str(path),
        sha256=artifacts.sha256_of(path),
        row_count=len(lengths),
        token_count=sum(lengths),
        trained_token_count=sum(map(sum, mask)),
        longest_row_tokens=max(lengths),
    )


def measure(folder: Path, spec: TrainSpec) -> dict[str, Any]:
    """Run a spec; its peak memory and its pace."""
    folder.mkdir()
    (folder / "spec.json").write_text(spec.model_dump_json(), encoding="utf-8")
    started_at = time.time()
    peaks = run_here(folder, spec) if torch.cuda.is_available() else run_in_child(folder)
    steps = [event for event in read(folder) if isinstance(event, events.StepLogged)]
    if not steps:
        raise RuntimeError(f"no step was logged; see {folder}")
    warm = [event.tokens_per_second for event in steps[WARM_UP_STEPS:] if event.tokens_per_second]
    return peaks | {
        "tokens_per_second": statistics.median(warm),
        "seconds_to_first_step": steps[0].at - started_at,
        "seconds": time.time() - started_at,
    }


def run_here(folder: Path, spec: TrainSpec) -> dict[str, Any]:
    """Train in this process, on the GPU; what earlier cases left there is told too."""
    gc.collect()
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    left = torch.cuda.memory_allocated()
    writer = events.EventWriter(folder / "events.jsonl")
    try:
        recipe.train(spec, folder, writer, lambda: False)
    finally:
        writer.close()
    free, total = torch.cuda.mem_get_info()
    return {
        "left_bytes": left,
        "peak_allocated_bytes": torch.cuda.max_memory_allocated(),
        "peak_bytes": torch.cuda.max_memory_reserved(),
        "context_bytes": total - free - torch.cuda.memory_reserved(),
    }


def run_in_child(folder: Path) -> dict[str, Any]:
    """Train in a process of its own; its peak stands in its events."""
    command = [sys.executable, "-P", "-m", "trainer", str(folder)]
    with (folder / "log.txt").open("wb") as log:
        code = subprocess.run(command, stdout=log, stderr=log, check=False).returncode
    if code != 0:
        raise RuntimeError((folder / "log.txt").read_text(encoding="utf-8")[-500:])
    return {
        "peak_bytes": max(e.peak_memory_bytes or 0 for e in read(folder) if isinstance(e, events.StepLogged))
    }


def estimated(case: Case, row: dict[str, Any]) -> dict[str, Any]:
    """What planning says of a case, and how far that is from what was measured."""
    on_gpu = "peak_allocated_bytes" in row
    settings, lengths = settings_of(case), lengths_of(case)
    shape = planning.ModelShape.from_config(config_of(case.model).to_dict())
    threads = int(os.environ.get("OMP_NUM_THREADS", os.cpu_count() or 1))
    device = planning.DeviceFacts(kind="cuda" if on_gpu else "cpu", name=row["machine"], cores=threads)
    tokens = planning.TokenFacts(
        row_count=len(lengths),
        token_count=sum(lengths),
        trained_token_count=sum(lengths) // 2,
        longest=max(lengths),
    )
    told = planning.memory(
        shape,
        settings,
        longest=case.length,
        device=device,
        trained_share=0.5,
        checkpointing=case.checkpointing,
    )
    pace = planning.time(shape, settings, tokens, device, checkpointing=case.checkpointing)
    said = told.reserved_bytes if on_gpu else told.needed_bytes
    found: dict[str, Any] = {
        "estimate_bytes": said,
        "peak_moment": told.peak,
        "breakdown": told.breakdown,
        "error_ratio": said / row["peak_bytes"] - 1,
        "estimated_tokens_per_second": pace.tokens_per_second,
    }
    if on_gpu:
        found["allocated_error_ratio"] = told.allocated_bytes / row["peak_allocated_bytes"] - 1
    return found


def line(row: dict[str, Any]) -> str:
    """One row for people."""
    if "error" in row:
        return f"| {row['name']} | {row['error'][:60]} | | | | |"
    return (
        f"| {row['name']} | {row['peak_bytes'] / 2**30:.2f} | {row['estimate_bytes'] / 2**30:.2f} "
        f"| {row['error_ratio']:+.1%} | {row['tokens_per_second']:,.0f} "
        f"| {row['estimated_tokens_per_second']:,.0f} |"
    )


def table(rows: list[dict[str, Any]]) -> str:
    """All rows, as Markdown."""
    head = "| run | measured GiB | estimated GiB | difference | tokens/s | estimated |"
    return "\n".join([head, "|---|---|---|---|---|---|", *(line(row) for row in rows)])


if __name__ == "__main__":
    main()
