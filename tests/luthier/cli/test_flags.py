"""The words behind `luthier train`, as LLaMA-Factory's command line has them."""

import shlex
from pathlib import Path
from typing import Any

import pytest

from luthier.cli.flags import read_words
from luthier.cli.job_file import JobFileError
from luthier.llamafactory import convert
from tests.luthier.llamafactory.jobs import TUTORIAL_FLAGS


def test_the_tutorials_flags_are_a_job() -> None:
    words = read_words(shlex.split(TUTORIAL_FLAGS))
    assert words.file is None
    job = convert(words.flags)
    assert (job.datasets, job.output_dir) == (["alpaca_zh"], "./output")
    settings = job.request["qlora"]
    assert settings["target_modules"] == ["q_proj", "v_proj"]
    assert (settings["precision"], settings["learning_rate"], settings["save_steps"]) == ("fp16", 1e-4, 100)


@pytest.mark.parametrize(
    ("text", "flags", "settings"),
    [
        ("--bf16 --max_steps -1", {"bf16": True, "max_steps": -1}, []),
        ("--lora_rank=16 --lora-alpha 32", {"lora_rank": 16, "lora_alpha": 32}, []),
        ("--no_double_quantization", {"double_quantization": False}, []),
        ("--report_to wandb tensorboard", {"report_to": ["wandb", "tensorboard"]}, []),
        ("--fp16 lora_rank=4", {"fp16": True}, ["lora_rank=4"]),
        ("--eval_strategy no", {"eval_strategy": False}, []),
        ("""--lr_scheduler_kwargs '{"num_cycles": 2}'""", {"lr_scheduler_kwargs": {"num_cycles": 2}}, []),
    ],
)
def test_flags_and_settings(text: str, flags: dict[str, Any], settings: list[str]) -> None:
    words = read_words(["job.yaml", *shlex.split(text)])
    assert (words.file, words.flags, words.settings) == (Path("job.yaml"), flags, settings)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("job.yaml other.yaml", "'other.yaml' is not understood"),
        ("--lora_rank 4 --lora_rank 8", "--lora_rank stands there twice"),
        ("--template [", "--template: the value is not YAML"),
    ],
)
def test_what_is_not_understood_is_told(text: str, message: str) -> None:
    with pytest.raises(JobFileError, match=message):
        read_words(text.split())
