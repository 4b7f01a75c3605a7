"""The sample that every other test trains on, and answers of base and adapter."""

import json

import pytest
from tokenizers import Tokenizer

from luthier.artifacts import sha256_of
from trainer import answer, samples


def test_the_tiny_sample_is_the_same_for_the_same_seed(tiny, tmp_path):
    samples.make_tiny(tmp_path / "again")
    samples.make_tiny(tmp_path / "other", seed=1)

    names = [path.name for path in tiny.iterdir()]
    folders = (tiny, tmp_path / "again")
    hashes = {folder: {name: sha256_of(folder / name) for name in names} for folder in folders}

    assert hashes[tiny] == hashes[tmp_path / "again"]
    assert sha256_of(tmp_path / "other/model.safetensors") != hashes[tiny]["model.safetensors"]


def test_the_tiny_tokenizer_speaks_chatml_and_any_text(tiny):
    tokenizer = Tokenizer.from_file(str(tiny / "tokenizer.json"))

    marked = tokenizer.encode("<|im_start|>user\nGrüße, 世界 🎻<|im_end|>")

    assert marked.tokens[0] == "<|im_start|>"
    assert marked.tokens[-1] == "<|im_end|>"
    assert tokenizer.decode(marked.ids) == "user\nGrüße, 世界 🎻"


def test_a_folder_that_is_there_is_not_overwritten(tiny):
    with pytest.raises(FileExistsError, match="exists already"):
        samples.make_tiny(tiny)


def test_one_question_gets_the_answer_of_base_and_adapter(make_run, tiny, capsys):
    run = make_run(max_steps=10, learning_rate=5e-2)
    run.train()
    arguments = ["--model", str(tiny), "--question", "How many strings?", "--max-new-tokens", "8"]

    assert answer.main([*arguments, "--adapter", str(run.artifacts / "adapter")]) == 0
    both = json.loads(capsys.readouterr().out)
    assert answer.main(arguments) == 0
    base_only = json.loads(capsys.readouterr().out)

    assert both["tuned"] != both["base"]
    assert base_only["tuned"] is None
