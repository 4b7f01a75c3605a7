"""One question to a base model and to its tuned self: `python -P -m trainer.answer --model PATH ...`.

Prints one JSON object, {"question", "base", "tuned"}; "tuned" is null without an adapter. Decoding is greedy
and goes through the model's chat template. An adapter belongs to the numbers that it was trained over, so the
base is quantised as the `run.json` beside the adapter says.
"""

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from transformers import PreTrainedModel, PreTrainedTokenizerBase
from transformers.utils import logging

from luthier.errors import JobFailure
from luthier.spec import BaseModelRef
from trainer import placement
from trainer.model import load_tokenizer, load_weights
from trainer.versions import known_warnings_silenced


def answer(
    model: PreTrainedModel | PeftModel, tokenizer: PreTrainedTokenizerBase, question: str, max_new_tokens: int
) -> str:
    """The model's greedy answer to one user message, without special tokens."""
    messages = [{"role": "user", "content": question}]
    prompt = tokenizer.apply_chat_template(
        messages, add_generation_prompt=True, return_tensors="pt", return_dict=True
    ).to(model.device)
    with torch.inference_mode():
        output = model.generate(
            **prompt,
            do_sample=False,
            max_new_tokens=max_new_tokens,
            pad_token_id=tokenizer.pad_token_id,
            eos_token_id=tokenizer.eos_token_id,
        )
    new_tokens = output[0, prompt["input_ids"].shape[1] :]
    return tokenizer.decode(new_tokens, skip_special_tokens=True).strip()


def compare(model_folder: Path, adapter: Path | None, question: str, max_new_tokens: int) -> dict[str, Any]:
    """The base's answer and the tuned one's, from one loaded base.

    Raises:
        JobFailure: the base cannot be loaded.
    """
    place = placement.choose("auto", "auto")
    ref = BaseModelRef(id=model_folder.name, path=str(model_folder.resolve()))
    quantization, double_quant = _trained_over(adapter)
    base = load_weights(ref, quantization, double_quant, place)
    tokenizer = load_tokenizer(ref)
    answers = {"question": question, "base": answer(base, tokenizer, question, max_new_tokens), "tuned": None}
    if adapter is not None:
        with known_warnings_silenced():
            tuned = PeftModel.from_pretrained(base, adapter)
        answers["tuned"] = answer(tuned, tokenizer, question, max_new_tokens)
    return answers


def _trained_over(adapter: Path | None) -> tuple[str, bool]:
    """The quantisation that an adapter was trained over; none where no `run.json` tells."""
    manifest = adapter.parent / "run.json" if adapter else None
    if manifest is None or not manifest.is_file():
        return "none", True
    settings = json.loads(manifest.read_text(encoding="utf-8"))["hyperparameters"]
    return settings["quantization"], settings["double_quant"]


def main(arguments: list[str]) -> int:
    """Answer and print; the return value is the exit code."""
    parser = argparse.ArgumentParser(prog="python -P -m trainer.answer", description=__doc__)
    parser.add_argument("--model", type=Path, required=True, help="folder of the base model")
    parser.add_argument("--adapter", type=Path, help="folder of the adapter")
    parser.add_argument("--question", required=True)
    parser.add_argument("--max-new-tokens", type=int, default=64)
    options = parser.parse_args(arguments)
    logging.disable_progress_bar()
    try:
        answers = compare(options.model, options.adapter, options.question, options.max_new_tokens)
    except JobFailure as failure:
        print(failure.message, file=sys.stderr)
        return failure.exit_code
    print(json.dumps(answers, ensure_ascii=False))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
