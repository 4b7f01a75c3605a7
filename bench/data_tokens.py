"""Tokenisation of 52,000 Alpaca-like rows, beside the `datasets` library doing the same work in the same run.

`python bench/data_tokens.py --model FOLDER --output result.json`; without a model it trains a byte-level BPE
of 32,000 entries, since time depends on how words fall into tokens. The peer maps `apply_chat_template` over
the rows, with a second rendering of the prompt for the label mask, in two processes, and writes Parquet. Both
write the same ids; the masks differ by the line end behind an answer, which the peer's way counts in.
"""

import argparse
import json
import os
import random
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow.compute as pc
import pyarrow.parquet as pq
from datasets import load_dataset
from datasets.utils import disable_progress_bars
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from luthier.datasets.named_templates import NAMED
from luthier.datasets.prepare import prepare_file
from luthier.datasets.template_jinja import jinja
from luthier.datasets.tokenizer import load_tokenizer
from luthier.spec import DatasetRequest, SourceFile

ROWS = 52_000
MAX_TOKENS = 2048
PROCESSES = 2
_SYLLABLES = [one + two for one in "bdfghklmnprstvw" for two in ("a", "e", "i", "o", "u", "an", "er", "ing")]


def make_rows(path: Path, count: int, seed: int = 0) -> None:
    """Rows with about 60 words of prompt and 60 of answer, whose words are as unequal as in real text."""
    rng = random.Random(seed)
    words = ["".join(rng.choices(_SYLLABLES, k=rng.randint(1, 4))) for _ in range(20_000)]
    # Zipf's law: the n-th word is used 1/n times as often as the first.
    weights = [1 / (rank + 1) for rank in range(len(words))]

    def text(mean: int) -> str:
        length = max(3, round(rng.lognormvariate(0, 0.5) * mean * 0.88))
        return " ".join(rng.choices(words, weights, k=length)).capitalize() + "."

    with path.open("w", encoding="utf-8") as file:
        for _ in range(count):
            row = {"instruction": text(30), "input": text(30), "output": text(60)}
            file.write(json.dumps(row) + "\n")


def make_model(folder: Path, rows: Path) -> Path:
    """A folder with a ChatML tokenizer, trained on the first of the rows."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=32_000,
        special_tokens=["<|endoftext|>", "<|im_start|>", "<|im_end|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    with rows.open(encoding="utf-8") as file:
        tokenizer.train_from_iterator((line for line, _ in zip(file, range(5000), strict=False)), trainer)
    tokenizer.save(str(folder / "tokenizer.json"))
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "eos_token": "<|im_end|>",
        "pad_token": "<|endoftext|>",
        "chat_template": jinja(NAMED["chatml"]),
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(config), encoding="utf-8")
    return folder


def ours(rows: Path, model: Path, target: Path) -> None:
    source = SourceFile(path=str(rows), filename=rows.name, param="training_file")
    prepare_file(source, target, load_tokenizer(model), rules=DatasetRequest(), max_seq_length=MAX_TOKENS)


def theirs(rows: Path, model: Path, target: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(model)
    data = load_dataset("json", data_files=str(rows), split="train", cache_dir=str(target.parent / "cache"))
    encoded = data.map(
        _encode,
        fn_kwargs={"tokenizer": tokenizer},
        num_proc=PROCESSES,
        remove_columns=data.column_names,
    )
    encoded.to_parquet(str(target))


def _encode(row: dict[str, str], tokenizer: PreTrainedTokenizerBase) -> dict[str, Any]:
    user = {"role": "user", "content": f"{row['instruction']}\n{row['input']}"}
    answer = {"role": "assistant", "content": row["output"]}
    ids = tokenizer.apply_chat_template([user, answer])["input_ids"][:MAX_TOKENS]
    prompt = tokenizer.apply_chat_template([user], add_generation_prompt=True)["input_ids"]
    learnt = len(ids) - len(prompt)
    return {"input_ids": ids, "loss_mask": [0] * len(prompt) + [1] * learnt}


def timed(work: Callable[[Path, Path, Path], None], rows: Path, model: Path, target: Path) -> dict[str, Any]:
    """Seconds of the clock, loading of the tokenizer included, and what came out."""
    start = time.perf_counter()
    work(rows, model, target)
    seconds = time.perf_counter() - start
    ids = pq.read_table(target, columns=["input_ids"])["input_ids"]
    count = len(ids)
    tokens = int(pc.sum(pc.list_value_length(ids)).as_py())
    return {"seconds": round(seconds, 2), "rows_per_second": round(count / seconds), "tokens": tokens}


def measure(row_count: int, model: Path | None) -> dict[str, Any]:
    """Both ways over the same rows."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        rows = folder / "rows.jsonl"
        make_rows(rows, row_count)
        model = model or make_model(folder, rows)
        result: dict[str, Any] = {"rows": row_count, "cpu_count": len(os.sched_getaffinity(0))}
        result["luthier"] = timed(ours, rows, model, folder / "ours.parquet")
        result["datasets"] = timed(theirs, rows, model, folder / "theirs.parquet")
        result["ids_are_equal"] = _ids(folder / "ours.parquet") == _ids(folder / "theirs.parquet")
        result["ratio"] = round(result["datasets"]["seconds"] / result["luthier"]["seconds"], 2)
        return result


def _ids(path: Path) -> list[Any]:
    return pq.read_table(path, columns=["input_ids"])["input_ids"].slice(0, 1000).to_pylist()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", type=Path, help="folder with tokenizer.json and tokenizer_config.json")
    parser.add_argument("--rows", type=int, default=ROWS)
    parser.add_argument("--output", type=Path)
    options = parser.parse_args()
    disable_progress_bars()
    text = json.dumps(measure(options.rows, options.model), indent=2)
    if options.output:
        options.output.write_text(text + "\n", encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main()
