"""Names of models, folders of models, and what keeps a folder from being loaded."""

import json
import shutil
import struct
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from luthier.errors import LuthierError
from luthier.inspection import check_config
from luthier.models import check_model_id, find_model, is_allowed, list_models, require_known
from tests.hub import WEIGHTS, model_files

ALLOW = ("Qwen/*", "HuggingFaceTB/SmolLM2-*")


def write_model(folder: Path, changes: dict[str, bytes | None] | None = None, **config: Any) -> Path:
    """A model's folder, with files changed or left out."""
    folder.mkdir(parents=True)
    for name, content in (model_files(**config) | (changes or {})).items():
        if content is not None:
            (folder / name).write_bytes(content)
    return folder


@pytest.mark.parametrize("model_id", ["tiny", "gpt2", "Qwen/Qwen2.5-0.5B", "01-ai/Yi-1.5_6B", "a" * 96])
def test_a_model_name_is_taken_as_it_is(model_id: str) -> None:
    assert check_model_id(model_id) == model_id


@pytest.mark.parametrize(
    "model_id",
    [
        "", ".", "..", "../../etc/passwd", "/etc/passwd", "~/m", "~", "C:\\m", "\\\\srv\\s", "a\\b",
        "org/../x", "org/..", "a..b", "a--b", "org--n", "--upload-pack", "-n", "org/-n", "org/n-", "org/n.",
        ".hidden", "org/.hidden", "a/b/c", "org/", "/n", "org//n", "file:///etc/passwd", "s3://b/k",
        "http://169.254.169.254/latest", "org/n?x", "org/n#f", "org/n@main", "org/n@main;id", "org/n;id",
        "org/n$(id)", "org/n id", "org/n\n", "\norg/n", "org/n\0", "\u043erg/n", "org/\uff4e", "org/n\u202e",
        "org/n\u0301", "a" * 97, "a" * 5000, "org/n.git", "tiny.1234.tmp", "org/n.partial", "org/%2e%2e",
    ],
)  # fmt: skip
def test_a_hostile_name_is_refused_and_looked_up_nowhere(tmp_path: Path, model_id: str) -> None:
    with pytest.raises(LuthierError, match="is not a model name: write `name`") as error:
        require_known(tmp_path / "models", model_id, ("*",))
    assert (error.value.code, error.value.param) == ("invalid_model", "model")
    assert len(error.value.message) < 400
    assert error.value.message.isprintable()
    assert find_model(tmp_path / "models", model_id) is None
    assert not is_allowed(model_id, ("*",))


def test_ids_of_the_hub_are_allowed_by_pattern() -> None:
    ids = (
        "Qwen/Qwen3-8B",
        "HuggingFaceTB/SmolLM2-135M",
        "HuggingFaceTB/other",
        "evil/Qwen",
        "Qwen",
        "qwen/x",
    )
    assert [is_allowed(model_id, ALLOW) for model_id in ids] == [True, True, False, False, False, False]


def test_a_name_without_an_organisation_is_never_pulled() -> None:
    assert not is_allowed("gpt2", ("*",))


def test_a_folder_put_there_by_hand_is_a_model(tmp_path: Path) -> None:
    folder = write_model(tmp_path / "my-model")
    model = find_model(tmp_path, "my-model")
    assert model is not None
    assert (model.path, model.revision, model.architecture) == (folder, None, "LlamaForCausalLM")
    assert (model.context_length, model.smallest_dimension, model.has_chat_template) == (2048, 32, True)
    assert model.size_bytes == sum(map(len, model_files().values()))
    assert model.created_at.tzinfo is not None


def test_the_record_of_a_pull_tells_commit_and_time(tmp_path: Path) -> None:
    record = {"id": "org/n", "commit": "c" * 40, "pulled_at": "2026-01-02T00:00:00Z", "files": []}
    write_model(tmp_path / "org--n", {"luthier.json": json.dumps(record).encode()})
    model = find_model(tmp_path, "org/n")
    assert model is not None
    assert (model.revision, model.created_at) == ("c" * 40, datetime(2026, 1, 2, tzinfo=UTC))


def test_models_are_listed_by_id_and_what_is_unfinished_or_broken_is_not(tmp_path: Path) -> None:
    for name in (
        "tiny",
        "Qwen--Qwen3-8B",
        "a--b--c",
        ".tmp-x",
        "tiny.17.tmp",
        ".partial/org--n@c",
        "x.partial",
    ):
        write_model(tmp_path / name)
    write_model(tmp_path / "broken", {"config.json": b"{"})
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").touch()
    assert [model.id for model in list_models(tmp_path)] == ["Qwen/Qwen3-8B", "tiny"]


def test_a_machine_without_models_lists_none(tmp_path: Path) -> None:
    assert list_models(tmp_path / "missing") == []


def test_a_broken_record_takes_no_model_away(tmp_path: Path) -> None:
    write_model(tmp_path / "tiny", {"luthier.json": b'{"commit": 3}'})
    assert [model.revision for model in list_models(tmp_path)] == [None]


def test_a_nested_text_config_gives_the_numbers(tmp_path: Path) -> None:
    numbers = {"hidden_size": 512, "num_attention_heads": 8, "head_dim": 16, "max_position_embeddings": 99}
    write_model(tmp_path / "m", num_key_value_heads=1, intermediate_size=None, text_config=numbers)
    model = find_model(tmp_path, "m")
    assert model is not None
    assert (model.context_length, model.smallest_dimension) == (99, 16)


def test_a_job_may_name_what_is_here_or_what_may_be_pulled(tmp_path: Path) -> None:
    write_model(tmp_path / "tiny")
    here = require_known(tmp_path, "tiny", ALLOW)
    assert here is not None
    assert here.id == "tiny"
    assert require_known(tmp_path, "Qwen/Qwen3-8B", ALLOW) is None


def test_an_unknown_model_is_answered_with_the_choice(tmp_path: Path) -> None:
    write_model(tmp_path / "tiny")
    with pytest.raises(LuthierError) as error:
        require_known(tmp_path, "evil/n", ALLOW)
    assert error.value.code == "invalid_model"
    assert error.value.message == (
        "There is no model 'evil/n' here. Models here: tiny. "
        "Ids of the hub that may be used: Qwen/*, HuggingFaceTB/SmolLM2-*."
    )


def test_without_any_model_the_answer_says_how_to_add_one(tmp_path: Path) -> None:
    with pytest.raises(LuthierError, match="luthier models add-sample tiny"):
        require_known(tmp_path, "tiny", ())


def test_a_job_on_a_dangerous_folder_is_refused_at_once(tmp_path: Path) -> None:
    write_model(tmp_path / "tiny", auto_map={"AutoConfig": "c.C"})
    with pytest.raises(LuthierError, match=r"config\.json has auto_map") as error:
        require_known(tmp_path, "tiny", ALLOW)
    assert (error.value.code, error.value.param) == ("model_not_supported", "model")


def test_a_folder_that_has_changed_since_it_was_sound_is_checked_anew(tmp_path: Path) -> None:
    write_model(tmp_path / "tiny")
    before = require_known(tmp_path, "tiny", ALLOW)
    shutil.rmtree(tmp_path / "tiny")
    write_model(tmp_path / "tiny", max_position_embeddings=77)
    after = require_known(tmp_path, "tiny", ALLOW)
    assert before is not None
    assert after is not None
    assert before.context_length != after.context_length == 77
    shutil.rmtree(tmp_path / "tiny")
    write_model(tmp_path / "tiny", auto_map={"AutoConfig": "c.C"})
    with pytest.raises(LuthierError, match=r"config\.json has auto_map"):
        require_known(tmp_path, "tiny", ALLOW)


def test_a_sound_folder_passes(tmp_path: Path) -> None:
    harmless = {
        "trust_remote_code": False,
        "_attn_implementation": "sdpa",
        "conv_kernel": 4,
        "auto_map": None,
    }
    check_config(write_model(tmp_path / "m", _name_or_path="org/kernels", **harmless))


@pytest.mark.parametrize(
    ("config", "place"),
    [
        ({"auto_map": {"AutoConfig": "c.C"}}, "auto_map"),
        ({"trust_remote_code": True}, "trust_remote_code"),
        ({"_attn_implementation_internal": "sdpa"}, "_attn_implementation_internal"),
        ({"attn_implementation": "evil/kernel"}, "attn_implementation"),
        ({"_attn_implementation": {"text": "evil/kernel@v1:f"}}, "_attn_implementation.text"),
        ({"kernel_config": {"layers": ["evil/kernel"]}}, "kernel_config.layers.0"),
        ({"model_file": "model.py"}, "model_file"),
        ({"text_config": {"deep": [{"auto_map": {"A": "b.C"}}]}}, "text_config.deep.0.auto_map"),
    ],
)
def test_settings_that_name_code_are_refused_wherever_they_stand(
    tmp_path: Path, config: dict[str, Any], place: str
) -> None:
    with pytest.raises(LuthierError, match=rf"config\.json has {place}, which would run code"):
        check_config(write_model(tmp_path / "m", **config))


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ({"architectures": ["BertModel"]}, "the architecture BertModel; fine-tuning needs a causal"),
        ({"architectures": ["T5ForConditionalGeneration"]}, "needs a causal language model"),
        ({"architectures": None}, "needs a causal language model"),
        ({"quantization_config": {"quant_method": "gptq"}}, "it is quantised already"),
    ],
)
def test_a_model_that_training_cannot_use_is_refused(
    tmp_path: Path, config: dict[str, Any], words: str
) -> None:
    with pytest.raises(LuthierError, match=words):
        check_config(write_model(tmp_path / "m", **config))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"config.json": None}, "it has no config.json"),
        ({"config.json": b"[1]"}, "config.json is not a JSON object"),
        ({"config.json": b"[" * 100_000}, "config.json cannot be read as JSON"),
        ({"config.json": b"\xff"}, "config.json cannot be read as JSON"),
        ({"config.json": b" " * (9 << 20)}, "config.json is larger than 8 MiB"),
        ({"generation_config.json": b'{"model_file": "m.py"}'}, "generation_config.json has model_file"),
        ({"tokenizer.json": None}, "it has no tokenizer.json: convert"),
        ({WEIGHTS: None}, "it has no weights"),
        ({WEIGHTS: None, "pytorch_model.bin": b""}, "its weights are pickles"),
        ({WEIGHTS: None, "model-1-of-1.safetensors": b""}, "it has no weights"),
    ],
)  # fmt: skip
def test_a_file_that_is_missing_or_wrong_is_named(
    tmp_path: Path, changes: dict[str, bytes | None], words: str
) -> None:
    with pytest.raises(LuthierError, match=words):
        check_config(write_model(tmp_path / "m", changes))


def test_a_missing_shard_is_named(tmp_path: Path) -> None:
    index = {"weight_map": {"a": "model-1-of-2.safetensors", "b": "model-2-of-2.safetensors"}}
    changes = {
        WEIGHTS: None,
        "model.safetensors.index.json": json.dumps(index).encode(),
        "model-1-of-2.safetensors": model_files()[WEIGHTS],
    }
    with pytest.raises(LuthierError, match=r"names model-2-of-2\.safetensors, which is not there"):
        check_config(write_model(tmp_path / "m", changes))


def weights(header: Any, data: bytes = b"\0" * 8, length: int | None = None) -> bytes:
    """A safetensors file from its parts."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + data


def tensor(
    start: int = 0, stop: int = 8, dtype: str = "F32", shape: tuple[int, ...] = (2,)
) -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [start, stop]}


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "the length of its header does not fit"),
        (weights({}, length=1 << 63), "the length of its header does not fit"),
        (weights(b"{", b""), "its header is not JSON"),
        (weights([1], b""), "its header is not a list of tensors"),
        (weights({"a": tensor()}, b"\0" * 7), "its tensors do not fill the file"),
        (weights({"a": tensor()}, b"\0" * 9), "its tensors do not fill the file"),
        (weights({"a": tensor(), "b": tensor()}), "its tensors overlap or leave holes"),
        (weights({"a": tensor(8, 16)}, b"\0" * 16), "its tensors overlap or leave holes"),
        (weights({"a": tensor(dtype="PY")}), "the entry of a has a wrong type"),
        (weights({"a": tensor(shape=(3,))}), "the entry of a has a wrong type"),
        (weights({"a": tensor(shape=(-1, -2))}), "the entry of a has a wrong type"),
        (weights({"a\x1b": 1}), "the entry of a\N{REPLACEMENT CHARACTER} has a wrong type"),
    ],
)
def test_weights_whose_header_does_not_fit_their_bytes_are_refused(
    tmp_path: Path, content: bytes, words: str
) -> None:
    with pytest.raises(LuthierError, match=f"{WEIGHTS} is not a sound safetensors file: {words}"):
        check_config(write_model(tmp_path / "m", {WEIGHTS: content}))
