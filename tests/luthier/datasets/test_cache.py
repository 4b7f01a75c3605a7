"""The name of prepared data."""

import json
import shutil
from datetime import datetime

import pytest

from luthier.datasets.cache import cache_key
from luthier.datasets.examples import DatasetError
from luthier.errors import JobFailure
from luthier.spec import DatasetRequest, SourceFile


@pytest.fixture
def key(model_folder, tmp_path):
    folder = tmp_path / "model"
    shutil.copytree(model_folder, folder)

    def build(sha256="a", length=512, now=datetime.now, source=(), **rules):
        file = {"path": "/x", "filename": "x.jsonl", "param": "training_file"} | dict(source)
        rules = DatasetRequest(**rules)
        return cache_key(sha256, folder, SourceFile.model_validate(file), rules, length, now=now)

    build.folder = folder
    return build


@pytest.mark.parametrize(
    "change",
    [
        {"sha256": "b"},
        {"length": 8},
        {"train_on": "all"},
        {"overlength": "drop"},
        {"on_bad_row": "drop"},
        {"max_samples": 5},
        {"template": "chatml"},
        {"template": "{text}"},
        {"columns": {"instruction": "q", "output": "a"}},
        {"source": {"columns": {"text": "t"}}},
        {"source": {"entry": {"formatting": "alpaca", "columns": {"prompt": "q"}, "tags": {}}}},
        {"template": "qwen", "style": "llamafactory"},
    ],
)
def test_everything_that_rows_depend_on_is_in_it(key, change):
    assert key() == key()
    assert key(**change) != key()


@pytest.mark.parametrize("change", [{"thoughts": "give"}, {"thoughts": "remove"}, {"template": None}])
def test_so_is_what_only_one_style_has(key, change):
    style = {"style": "llamafactory", "template": "qwen3"}
    assert key(**style | change) != key(**style)
    assert key(style="luthier") != key(style="llamafactory")


@pytest.mark.parametrize(
    "change",
    [
        {"validation_split": 0.1},
        {"validation_rows": 5},
        {"source": {"path": "/y", "filename": "y", "weight": 3.0, "param": "dataset.files"}},
    ],
)
def test_what_the_trainer_does_is_not_in_it(key, change):
    assert key(**change) == key()


def test_the_models_template_counts_where_it_is_used(key):
    before, named = key(), key(template="chatml")
    config = json.loads((key.folder / "tokenizer_config.json").read_text())
    (key.folder / "tokenizer_config.json").write_text(json.dumps(config | {"chat_template": "other"}))

    assert key() != before
    assert key(template="chatml") == named


def test_the_models_tokenizer_counts(key):
    before, path = key(), key.folder / "tokenizer.json"
    path.write_text(path.read_text() + "\n")
    other = key()
    config = json.loads((key.folder / "tokenizer_config.json").read_text())
    (key.folder / "tokenizer_config.json").write_text(json.dumps(config | {"pad_token": "<|im_end|>"}))

    assert len({before, other, key()}) == 3


def test_a_template_that_prints_the_date_has_a_name_a_day(key):
    (key.folder / "chat_template.jinja").write_text("{{ strftime_now('%d') }}")
    days = [key(now=lambda day=day: datetime(2026, 1, day)) for day in (1, 1, 2)]  # noqa: DTZ001

    assert days[0] == days[1] != days[2]


def test_a_name_that_the_table_lacks_is_told(key):
    with pytest.raises(DatasetError, match="is not a template that there is"):
        key(template="nope")


@pytest.mark.parametrize("name", ["tokenizer.json", "tokenizer_config.json", "chat_template.jinja"])
def test_a_file_of_the_model_that_is_larger_than_memory_is_named_and_not_read(key, name):
    with (key.folder / name).open("wb") as file:
        file.truncate(9 * 1024**3)
    with pytest.raises(JobFailure, match=rf"{name} cannot be read: it has 9,663,676,416 bytes") as failed:
        key()
    assert failed.value.code == "model_load_failed"


def test_a_template_that_is_no_text_is_named(key):
    (key.folder / "chat_template.jinja").write_bytes(b"\xff\xfe{{")
    with pytest.raises(JobFailure, match=r"chat_template\.jinja cannot be read"):
        key()
