"""Tokenisation of Alpaca-like rows, beside the `datasets` library doing the same work.

Without a model a byte-level BPE of 32,000 entries is trained on the rows, since time depends on how words
fall into tokens. The peer maps `apply_chat_template` over the rows, with a second rendering of the prompt for
the label mask, in two processes, and writes Parquet. Both write the same ids, which is checked; the masks
differ by the line end behind an answer, which the peer's way counts in. Rates are by the clock, loading
included.

Rows are as long as those of the published Alpaca set: on average 10 words of instruction, an input in 40 of
100 rows (here of 10 words), and 44 words of output. Lengths are log-normal about these means, with a sigma of
0.4, 0.7 and 0.8.
"""

import itertools
import json
import random
import sys
import tempfile
from pathlib import Path
from typing import Any

import pyarrow.compute as pc
import pyarrow.parquet as pq
from datasets import load_dataset
from measuring import Result, measured
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
_INPUT_RATIO = 0.4
_COMPARED_ROWS = 1000
_SYLLABLES = [one + two for one in "bdfghklmnprstvw" for two in ("a", "e", "i", "o", "u", "an", "er", "ing")]


def compare(folder: Path, row_count: int, model: Path | None, repeats: int) -> list[Result]:
    """Ours and theirs over the same rows."""
    rows = folder / "alpaca.jsonl"
    _make_rows(rows, row_count)
    model = model or _make_model(folder, rows)
    targets = folder / "ours.parquet", folder / "theirs.parquet"
    results = [
        measured(
            what,
            lambda work=work, target=target: work(rows, model, target),
            size=rows.stat().st_size,
            row_count=row_count,
            repeats=repeats,
            rate_by="wall",
            tokens=lambda target=target: _token_count(target),
        )
        for what, work, target in zip(
            ("luthier prepare_file", "datasets map"), (_ours, _theirs), targets, strict=True
        )
    ]
    if _first_ids(targets[0]) != _first_ids(targets[1]):
        sys.exit("the two ways gave different ids")
    return results


def _make_rows(path: Path, count: int, seed: int = 0) -> None:
    """Rows whose words are as unequal as in real text."""
    rng = random.Random(seed)
    words = ["".join(rng.choices(_SYLLABLES, k=rng.randint(1, 4))) for _ in range(20_000)]
    # Zipf's law: the n-th word is used 1/n times as often as the first.
    weights = list(itertools.accumulate(1 / (rank + 1) for rank in range(len(words))))

    def text(mean: int, sigma: float) -> str:
        # The mean of such a draw is one.
        length = max(1, round(mean * rng.lognormvariate(-(sigma**2) / 2, sigma)))
        return " ".join(rng.choices(words, cum_weights=weights, k=length)).capitalize() + "."

    with path.open("w", encoding="utf-8") as file:
        for _ in range(count):
            extra = text(10, 0.7) if rng.random() < _INPUT_RATIO else ""
            row = {"instruction": text(10, 0.4), "input": extra, "output": text(44, 0.8)}
            file.write(json.dumps(row) + "\n")


def _make_model(folder: Path, rows: Path) -> Path:
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


def _ours(rows: Path, model: Path, target: Path) -> None:
    source = SourceFile(path=str(rows), filename=rows.name, param="training_file")
    prepare_file(source, target, load_tokenizer(model), rules=DatasetRequest(), max_seq_length=MAX_TOKENS)


def _theirs(rows: Path, model: Path, target: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(model)
    with tempfile.TemporaryDirectory(dir=target.parent) as cache:
        data = load_dataset("json", data_files=str(rows), split="train", cache_dir=cache)
        encoded = data.map(
            _encode,
            fn_kwargs={"tokenizer": tokenizer},
            num_proc=PROCESSES,
            remove_columns=data.column_names,
        )
        encoded.to_parquet(str(target))


def _encode(row: dict[str, str], tokenizer: PreTrainedTokenizerBase) -> dict[str, Any]:
    request = "\n".join(text for text in (row["instruction"], row["input"]) if text)
    user, answer = {"role": "user", "content": request}, {"role": "assistant", "content": row["output"]}
    ids = tokenizer.apply_chat_template([user, answer])["input_ids"][:MAX_TOKENS]
    prompt = tokenizer.apply_chat_template([user], add_generation_prompt=True)["input_ids"]
    learnt = len(ids) - len(prompt)
    return {"input_ids": ids, "loss_mask": [0] * len(prompt) + [1] * learnt}


def _token_count(path: Path) -> int:
    ids = pq.read_table(path, columns=["input_ids"])["input_ids"]
    return int(pc.sum(pc.list_value_length(ids)).as_py())


def _first_ids(path: Path) -> list[Any]:
    return pq.read_table(path, columns=["input_ids"])["input_ids"].slice(0, _COMPARED_ROWS).to_pylist()
