"""Pulling base models, from a hub on loopback."""

import json
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import close_session

from luthier import events, fetcher
from luthier.artifacts import sha256_of
from luthier.errors import ExitCode, JobFailure, LuthierError
from luthier.models import BaseModel, find_model, list_models
from tests.hub import WEIGHTS, Hub, model_files, running_hub

MODEL = "org/model"
TOKEN = "hf_abcdefghijklmnopqrstuvwxyz"


@pytest.fixture
def hub() -> Iterator[Hub]:
    """A hub with one tiny model."""
    with running_hub() as hub:
        hub.models[MODEL] = model_files()
        yield hub
    close_session()


def pull(hub: Hub, folder: Path, **options: Any) -> BaseModel:
    """Pull the model without trying again."""
    defaults: dict[str, Any] = {"endpoint": hub.url, "retries": 0, "on_progress": lambda *_: None}
    return fetcher.pull(MODEL, folder, **defaults | options)


def test_a_pulled_model_is_whole_with_its_commit_and_hashes(hub: Hub, tmp_path: Path) -> None:
    seen: list[tuple[int, int]] = []
    model = pull(hub, tmp_path, on_progress=lambda done, total: seen.append((done, total)))
    record = json.loads((model.path / "luthier.json").read_text())
    assert (model.path, model.revision) == (tmp_path / "org--model", hub.commit(MODEL))
    assert {path.name: path.read_bytes() for path in model.path.iterdir() if path.name != "luthier.json"} == (
        hub.models[MODEL]
    )
    assert {file["name"]: file["sha256"] for file in record["files"]} == {
        name: sha256_of(model.path / name) for name in hub.models[MODEL]
    }
    size = sum(map(len, hub.models[MODEL].values()))
    assert seen == sorted(seen)
    assert seen[-1] == (size, size)


def test_code_pickles_and_other_copies_of_the_weights_stay_on_the_hub(hub: Hub, tmp_path: Path) -> None:
    unwanted = (
        "modeling.py", "tokenizer.py", "pytorch_model.bin", "tokenizer.pkl", "lib.so", "../up.json",
        "README.md", "luthier.json", "consolidated.safetensors", "onnx/model.safetensors",
    )  # fmt: skip
    hub.models[MODEL] |= dict.fromkeys(unwanted, b"{}") | {"merges.txt": b"a b", "chat_template.jinja": b"{}"}
    hub.models[MODEL] |= {"notes.txt": b"x"}
    hub.claimed["notes.txt"] = 1 << 30
    pull(hub, tmp_path)
    assert set(hub.files_asked()) == {*model_files(), "merges.txt", "chat_template.jinja"}


def test_a_model_that_is_here_is_not_asked_for_again(hub: Hub, tmp_path: Path) -> None:
    first = pull(hub, tmp_path)
    hub.asked.clear()
    assert pull(hub, tmp_path) == first
    assert hub.asked == []


def test_shards_are_taken_as_the_index_names_them(hub: Hub, tmp_path: Path) -> None:
    files = hub.models[MODEL]
    shard = "model-00001-of-00001.safetensors"
    files[shard] = files.pop(WEIGHTS)
    files["model.safetensors.index.json"] = json.dumps(
        {"weight_map": {"model.embed_tokens.weight": shard}}
    ).encode()
    assert (pull(hub, tmp_path).path / shard).read_bytes() == files[shard]


def test_a_broken_download_is_not_listed_and_goes_on_where_it_ended(hub: Hub, tmp_path: Path) -> None:
    hub.cut_at = 70_000
    with pytest.raises(JobFailure, match=r"127\.0\.0\.1 cannot be reached") as failure:
        pull(hub, tmp_path)
    assert failure.value.exit_code == ExitCode.UNAVAILABLE
    assert list_models(tmp_path) == []
    hub.cut_at = None
    hub.asked.clear()
    assert (pull(hub, tmp_path).path / WEIGHTS).read_bytes() == hub.models[MODEL][WEIGHTS]
    assert hub.ranges_asked(WEIGHTS) == ["bytes=70000-"]
    assert hub.files_asked() == [WEIGHTS]


def test_progress_counts_what_an_earlier_attempt_left(hub: Hub, tmp_path: Path) -> None:
    hub.cut_at = 70_000
    with pytest.raises(JobFailure):
        pull(hub, tmp_path)
    hub.cut_at = None
    seen: list[int] = []
    pull(hub, tmp_path, on_progress=lambda done, _: seen.append(done))
    assert seen[0] == len(hub.models[MODEL]["config.json"])


def test_a_server_that_knows_no_ranges_sends_all_again(hub: Hub, tmp_path: Path) -> None:
    hub.cut_at, hub.ranges = 70_000, False
    with pytest.raises(JobFailure):
        pull(hub, tmp_path)
    hub.cut_at = None
    hub.asked.clear()
    assert (pull(hub, tmp_path).path / WEIGHTS).read_bytes() == hub.models[MODEL][WEIGHTS]
    assert hub.ranges_asked(WEIGHTS) == ["bytes=70000-"]


def test_what_came_of_an_older_commit_is_dropped(hub: Hub, tmp_path: Path) -> None:
    hub.cut_at = 70_000
    with pytest.raises(JobFailure):
        pull(hub, tmp_path)
    hub.cut_at = None
    hub.asked.clear()
    hub.models[MODEL] |= {"generation_config.json": b"{}"}
    assert pull(hub, tmp_path).revision == hub.commit(MODEL)
    assert hub.ranges_asked(WEIGHTS) == [None]
    assert [path.name for path in (tmp_path / ".partial").iterdir()] == ["org--model.lock"]


@pytest.mark.parametrize("name", ["config.json", WEIGHTS])
def test_a_file_that_differs_from_what_the_hub_says_is_not_kept(hub: Hub, tmp_path: Path, name: str) -> None:
    content = hub.models[MODEL][name]
    hub.served[name] = content[:-1] + b"?"
    with pytest.raises(JobFailure, match=f"{name} is not what the hub says"):
        pull(hub, tmp_path)
    hub.served.clear()
    assert (pull(hub, tmp_path).path / name).read_bytes() == content


def test_trouble_that_passes_is_waited_for(hub: Hub, tmp_path: Path) -> None:
    hub.statuses = [429, 503]
    assert pull(hub, tmp_path, retries=2).revision == hub.commit(MODEL)
    assert hub.statuses == []


@pytest.mark.parametrize(
    ("status", "exit_code", "words"),
    [
        (401, ExitCode.MISSING, "wants a token for org/model: .* set LUTHIER_HUB_TOKEN"),
        (403, ExitCode.MISSING, "accept the model's terms on its page"),
        (404, ExitCode.MISSING, "answered 404 for org/model: check the name"),
        (429, ExitCode.TRY_LATER, "answered 429: try again later"),
        (503, ExitCode.TRY_LATER, "answered 503: try again later"),
    ],
)
def test_a_refusal_says_what_to_do(
    hub: Hub, tmp_path: Path, status: int, exit_code: ExitCode, words: str
) -> None:
    hub.statuses = [status]
    with pytest.raises(JobFailure, match=words) as failure:
        pull(hub, tmp_path)
    assert failure.value.exit_code == exit_code


def test_a_model_that_the_hub_does_not_show_is_named(hub: Hub, tmp_path: Path) -> None:
    del hub.models[MODEL]
    with pytest.raises(JobFailure, match="shows no model org/model: check the name") as failure:
        pull(hub, tmp_path)
    assert (failure.value.code, failure.value.exit_code) == ("model_not_found", ExitCode.MISSING)


def test_a_hub_that_is_not_there_may_be_there_later(hub: Hub, tmp_path: Path) -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        with pytest.raises(JobFailure, match="check HF_ENDPOINT and HTTPS_PROXY") as failure:
            pull(hub, tmp_path, endpoint=f"http://user:secret@127.0.0.1:{unused.getsockname()[1]}")
    assert failure.value.exit_code == ExitCode.UNAVAILABLE
    assert "secret" not in failure.value.message


def test_the_token_opens_a_gated_model_and_goes_to_no_other_host(hub: Hub, tmp_path: Path) -> None:
    hub.token = TOKEN
    pull(hub, tmp_path, token=TOKEN)
    told = {asked.path.startswith("/storage/"): "authorization" in asked.headers for asked in hub.asked}
    assert told == {False: True, True: False}


def test_a_refused_token_is_not_repeated(hub: Hub, tmp_path: Path) -> None:
    hub.token = "another"
    with pytest.raises(JobFailure, match="refused LUTHIER_HUB_TOKEN for org/model") as failure:
        pull(hub, tmp_path, token=TOKEN)
    assert TOKEN not in str(failure.value)


def test_a_config_that_names_code_ends_the_pull_before_anything_else_is_taken(
    hub: Hub, tmp_path: Path
) -> None:
    hub.models[MODEL] = model_files(auto_map={"AutoModelForCausalLM": "modeling.Model"})
    hub.models[MODEL]["added_tokens.json"] = b"{}"
    with pytest.raises(LuthierError, match=r"config\.json has auto_map") as error:
        pull(hub, tmp_path)
    assert error.value.code == "model_not_supported"
    assert hub.files_asked() == ["config.json"]


def test_settings_of_the_tokenizer_are_checked_before_the_weights(hub: Hub, tmp_path: Path) -> None:
    hub.models[MODEL]["tokenizer_config.json"] = b'{"auto_map": {"AutoTokenizer": ["tok.Tok", null]}}'
    with pytest.raises(LuthierError, match=r"tokenizer_config\.json has auto_map"):
        pull(hub, tmp_path)
    assert WEIGHTS not in hub.files_asked()


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({WEIGHTS: None, "pytorch_model.bin": b"x"}, "its weights are pickles"),
        ({WEIGHTS: None, "adapter_config.json": b"{}"}, "it is an adapter"),
        ({WEIGHTS: None}, "it has no weights"),
        ({"tokenizer.json": None}, "org/model has no tokenizer.json"),
    ],
)
def test_a_repository_that_lacks_what_loading_needs_is_refused_by_its_list(
    hub: Hub, tmp_path: Path, changes: dict[str, bytes | None], words: str
) -> None:
    files = hub.models[MODEL] | changes
    hub.models[MODEL] = {name: content for name, content in files.items() if content is not None}
    with pytest.raises(LuthierError, match=words):
        pull(hub, tmp_path)
    assert hub.files_asked() == []


def test_weights_that_are_not_sound_are_not_kept(hub: Hub, tmp_path: Path) -> None:
    hub.models[MODEL][WEIGHTS] = b"\xff" * 100
    with pytest.raises(LuthierError, match="is not a sound safetensors file"):
        pull(hub, tmp_path)
    assert list_models(tmp_path) == []
    assert [path.name for path in (tmp_path / ".partial").iterdir()] == ["org--model.lock"]


def test_a_model_larger_than_the_disk_is_not_begun(hub: Hub, tmp_path: Path) -> None:
    hub.claimed[WEIGHTS] = 1 << 60
    with pytest.raises(JobFailure, match=r"needs 1152921504\.6 GB more") as failure:
        pull(hub, tmp_path)
    assert (failure.value.code, failure.value.exit_code) == ("disk_full", ExitCode.DISK_FULL)
    assert hub.files_asked() == []


def test_a_model_folder_that_cannot_be_written_is_named(hub: Hub, tmp_path: Path) -> None:
    (tmp_path / "models").touch()
    with pytest.raises(JobFailure, match="models cannot be used as the folder of models: Not a directory"):
        pull(hub, tmp_path / "models")


def test_a_name_without_an_organisation_is_not_looked_for(hub: Hub, tmp_path: Path) -> None:
    with pytest.raises(LuthierError, match="gpt2 is not on this machine"):
        fetcher.pull("gpt2", tmp_path, endpoint=hub.url, on_progress=lambda *_: None)
    assert hub.asked == []


def test_two_pulls_of_one_model_wait_for_each_other(hub: Hub, tmp_path: Path) -> None:
    hub.held = threading.Event()
    with ThreadPoolExecutor(2) as pool:
        pulls = [pool.submit(pull, hub, tmp_path) for _ in range(2)]
        assert hub.halfway.wait(30)
        hub.held.set()
        first, second = (future.result() for future in pulls)
    assert first == second
    assert hub.ranges_asked(WEIGHTS) == [None]


def start(hub: Hub, folder: Path, *arguments: str, **environment: str) -> subprocess.Popen[bytes]:
    """The fetcher as the supervisor starts it."""
    folder.mkdir(exist_ok=True)
    options = [
        "--model-dir",
        str(folder / "models"),
        "--events",
        str(folder / "events.jsonl"),
        "--retries",
        "0",
    ]
    return subprocess.Popen(
        [sys.executable, "-P", "-m", "luthier.fetcher", *(arguments or [MODEL]), *options],
        env={"PATH": os.environ["PATH"], "HF_HOME": str(folder / "hf"), "HF_ENDPOINT": hub.url} | environment,
    )


def reported(folder: Path) -> list[events.AnyEvent]:
    """What a fetcher said."""
    return [event for event, _ in events.read_events(folder / "events.jsonl", 0)]


def test_the_process_reports_and_ends_with_the_model(hub: Hub, tmp_path: Path) -> None:
    hub.token = TOKEN
    assert start(hub, tmp_path, LUTHIER_HUB_TOKEN=TOKEN).wait(60) == ExitCode.DONE
    first, *progress, last = reported(tmp_path)
    model = find_model(tmp_path / "models", MODEL)
    assert isinstance(first, events.PhaseChanged)
    assert first.phase == "downloading_model"
    assert {event.type for event in progress} == {"progress_made"}
    assert isinstance(last, events.RunEnded)
    assert model is not None
    assert last.result == {"path": str(model.path), "revision": hub.commit(MODEL)}


@pytest.mark.parametrize(
    ("status", "exit_code", "code"), [(404, 66, "model_not_found"), (503, 75, "server_error")]
)
def test_the_process_tells_why_it_failed(
    hub: Hub, tmp_path: Path, status: int, exit_code: int, code: str
) -> None:
    hub.statuses = [status]
    assert start(hub, tmp_path).wait(60) == exit_code
    last = reported(tmp_path)[-1]
    assert isinstance(last, events.RunEnded)
    assert (last.outcome, last.code) == ("failed", code)


def test_the_process_ends_on_sigterm_and_keeps_what_came(hub: Hub, tmp_path: Path) -> None:
    hub.held = threading.Event()
    process = start(hub, tmp_path)
    assert hub.halfway.wait(60)
    process.send_signal(signal.SIGTERM)
    assert process.wait(60) == ExitCode.STOPPED
    partial = tmp_path / "models" / ".partial" / f"org--model@{hub.commit(MODEL)}" / WEIGHTS
    last = reported(tmp_path)[-1]
    assert isinstance(last, events.RunEnded)
    assert last.outcome == "stopped"
    assert partial.is_file()


def test_the_process_goes_through_a_proxy(hub: Hub, tmp_path: Path) -> None:
    process = start(hub, tmp_path, HF_ENDPOINT="http://hub.invalid", HTTP_PROXY=hub.url)
    assert process.wait(60) == ExitCode.DONE
    assert {asked.headers["host"] for asked in hub.asked} == {
        "hub.invalid",
        hub.storage_url[len("http://") :],
    }
