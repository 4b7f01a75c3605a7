"""Job files: YAML as people write it, and paths that are relative to the file."""

from pathlib import Path

import pytest

from luthier.cli.job_file import JobFileError, apply_settings, local_files, read_job_file
from luthier.spec import JobRequest

ROOT = Path(__file__).parents[3]


def test_numbers_with_an_exponent_are_numbers_and_dates_are_text(tmp_path: Path) -> None:
    path = tmp_path / "job.yaml"
    path.write_text("qlora: {learning_rate: 1e-4}\nmetadata: {day: 2024-05-06}\n")
    assert read_job_file(path) == {"qlora": {"learning_rate": 1e-4}, "metadata": {"day": "2024-05-06"}}


def test_paths_are_relative_to_the_job_file(tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").write_text("{}\n")
    path = tmp_path / "job.yaml"
    path.write_text("training_file: rows.jsonl\nvalidation_file: file-abc\n")
    body = read_job_file(path)
    assert local_files(body) == {"training_file": tmp_path / "rows.jsonl"}
    assert body["validation_file"] == "file-abc"


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(JobFileError, match=r"training_file: there is no file .*rows\.jsonl"):
        local_files({"training_file": str(tmp_path / "rows.jsonl")})


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("- a\n- b\n", "not a job"),
        ("model: [\n", "not YAML: line 2"),
        ("", "not a job"),
        ("\xff", "not UTF-8"),
    ],
)
def test_what_is_no_job_file_is_refused(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "job.yaml"
    path.write_bytes(text.encode("latin-1"))
    with pytest.raises(JobFileError, match=message):
        read_job_file(path)


def test_settings_reach_into_groups() -> None:
    body = {"qlora": {"r": 16}}
    apply_settings(
        body, ["qlora.r=8", "qlora.target_modules=[q_proj, v_proj]", "dataset.validation_split=0.1"]
    )
    assert body == {
        "qlora": {"r": 8, "target_modules": ["q_proj", "v_proj"]},
        "dataset": {"validation_split": 0.1},
    }


@pytest.mark.parametrize("path", sorted((ROOT / "examples").glob("*.yaml")), ids=lambda path: path.name)
def test_the_examples_are_valid_jobs(path: Path) -> None:
    body = read_job_file(path)
    JobRequest.model_validate(body)
    assert set(local_files(body)) >= {"training_file"}


def test_a_file_here_that_is_called_like_an_id_is_the_file(tmp_path: Path) -> None:
    (tmp_path / "file-rows.jsonl").touch()
    (tmp_path / "job.yaml").write_text("training_file: file-rows.jsonl\nvalidation_file: file-uploaded\n")
    body = read_job_file(tmp_path / "job.yaml")
    assert body["training_file"] == str(tmp_path / "file-rows.jsonl")
    assert body["validation_file"] == "file-uploaded"
