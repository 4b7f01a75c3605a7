"""One QLoRA run of a 1.5B shape with random weights: stopped, resumed, published, loaded again.

Needs a CUDA GPU and the trainer's packages, no hub: `python bench/random_shape.py --output result.json`.
The shape is Qwen2.5-1.5B's (Qwen2.5 Technical Report, arXiv 2412.15115, table 1); the data is random token
ids of fixed length, half of them trained on. Prints steps and tokens per second and the peak memory.
"""

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import torch
from transformers import AutoModelForCausalLM, PreTrainedConfig, Qwen2Config

from luthier import artifacts, events
from luthier.spec import BaseModelRef, Hyperparameters, PreparedData, PreparedSplit, TrainSpec
from trainer import samples

SHAPE = Qwen2Config(
    vocab_size=151936,
    hidden_size=1536,
    intermediate_size=8960,
    num_hidden_layers=28,
    num_attention_heads=12,
    num_key_value_heads=2,
    max_position_embeddings=32768,
    tie_word_embeddings=True,
)
ROWS, ROW_TOKENS, STEPS, STOP_AFTER = 512, 512, 40, 12


def main() -> None:
    """Run it and print the result."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output", type=Path)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        result = measure(Path(name))
    text = json.dumps(result, indent=1)
    print(text)
    if options.output:
        options.output.write_text(text + "\n", encoding="utf-8")


def measure(folder: Path) -> dict[str, Any]:
    """The two runs and what they show."""
    model, data = make_model(folder / "model"), make_data(folder / "train.parquet")
    first, second = folder / "run-1", folder / "run-2"
    stopped = run(first, spec(model, data, resume_from=None), stop_after=STOP_AFTER)
    checkpoint = sorted((first / "checkpoints").glob("step-*"))[-1]
    artifacts.verify(checkpoint)
    done = run(second, spec(model, data, resume_from=checkpoint), stop_after=None)
    logged = [event for event in read(second) if isinstance(event, events.StepLogged)]
    last = logged[-1]
    return {
        "device": torch.cuda.get_device_name(),
        "torch": torch.__version__,
        "exit_codes": [stopped, done],
        "resumed_from_step": read_one(second, events.RunStarted).resumed_from_step,
        "steps": last.step,
        "tokens_per_second": last.tokens_per_second,
        "steps_per_second": (last.tokens_per_second or 0) / (8 * ROW_TOKENS),
        "peak_memory_gib": (last.peak_memory_bytes or 0) / 2**30,
        "seconds_to_first_step": logged[0].at - read_one(second, events.RunStarted).at,
        "losses": [logged[0].train_loss, last.train_loss],
        "artifacts": sorted(
            p.relative_to(second).as_posix() for p in (second / "artifacts").rglob("*") if p.is_file()
        ),
        "loads_in_peft": loads_in_peft(model, second / "artifacts" / "adapter"),
    }


def make_model(folder: Path, config: PreTrainedConfig = SHAPE, device: str = "cuda") -> Path:
    """Random bf16 weights of a shape, with the tokenizer of the sample `tiny`."""
    samples.make_tiny(folder)
    torch.manual_seed(0)
    with torch.device(device):
        model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    model.save_pretrained(folder)
    return folder


def make_data(path: Path) -> PreparedSplit:
    """Random rows; the second half of each is trained on."""
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(0, 1000, (ROWS, ROW_TOKENS), generator=generator).tolist()
    mask = [[0] * (ROW_TOKENS // 2) + [1] * (ROW_TOKENS // 2)] * ROWS
    table = pa.table(
        {"input_ids": pa.array(ids, pa.list_(pa.int32())), "loss_mask": pa.array(mask, pa.list_(pa.uint8()))}
    )
    pq.write_table(table, path)
    return PreparedSplit(
        path=str(path),
        sha256=artifacts.sha256_of(path),
        row_count=ROWS,
        token_count=ROWS * ROW_TOKENS,
        trained_token_count=ROWS * ROW_TOKENS // 2,
    )


def spec(model: Path, data: PreparedSplit, resume_from: Path | None) -> TrainSpec:
    """QLoRA with NF4 and r 16 on all linears, 8 x 512 tokens a step."""
    return TrainSpec(
        job_id="ftjob-bench",
        run=1,
        epoch=1,
        model=BaseModelRef(id="random-1.5b", path=str(model)),
        data=PreparedData(train=(data,)),
        resume_from=str(resume_from) if resume_from else None,
        hyperparameters=Hyperparameters(
            method="qlora", n_epochs=1, batch_size=8, gradient_accumulation=1, learning_rate_multiplier=1.0,
            learning_rate=2e-4, lr_scheduler="linear", warmup_steps=2, weight_decay=0.0, max_grad_norm=1.0,
            max_steps=STEPS, eval_steps=20, save_steps=20, save_total_limit=2, logging_steps=4, r=16,
            alpha=32.0, dropout=0.0, target_modules="all-linear", use_rslora=False, quantization="nf4",
            double_quant=True,
            precision="auto", max_seq_length=ROW_TOKENS, gradient_checkpointing="auto", validation_split=0.03,
            seed=7,
        ),
    )  # fmt: skip


def run(folder: Path, train_spec: TrainSpec, stop_after: int | None) -> int:
    """Start the trainer; SIGTERM it once it has logged `stop_after` steps. Returns its exit code."""
    folder.mkdir()
    (folder / "spec.json").write_text(train_spec.model_dump_json(), encoding="utf-8")
    child = subprocess.Popen(
        [sys.executable, "-P", "-m", "trainer", str(folder)], env={**os.environ, "HF_HUB_OFFLINE": "1"}
    )
    told = False
    while (code := child.poll()) is None:
        steps = [event.step for event in read(folder) if isinstance(event, events.StepLogged)]
        if stop_after is not None and not told and steps and steps[-1] >= stop_after:
            child.send_signal(signal.SIGTERM)
            told = True
        time.sleep(0.2)
    return code


def read(folder: Path) -> list[events.AnyEvent]:
    """All events of a run so far."""
    return [event for event, _ in events.read_events(folder / "events.jsonl", 0)]


def read_one(folder: Path, kind: type[Any]) -> Any:
    """The first event of a kind."""
    return next(event for event in read(folder) if isinstance(event, kind))


def loads_in_peft(model: Path, adapter: Path) -> bool:
    """Whether stock peft loads the adapter in a fresh process, and its weights are not zero."""
    code = (
        "import sys; from peft import PeftModel; from transformers import AutoModelForCausalLM as A; "
        "m = PeftModel.from_pretrained(A.from_pretrained(sys.argv[1]), sys.argv[2]); "
        "print(sum(p.abs().sum().item() for n, p in m.named_parameters() if 'lora_B' in n) > 0)"
    )
    answer = subprocess.run(
        [sys.executable, "-c", code, str(model), str(adapter)], capture_output=True, text=True, check=False
    )
    return answer.stdout.strip().endswith("True")


if __name__ == "__main__":
    main()
