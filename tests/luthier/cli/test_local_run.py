"""Runs without a server: what `--resume` goes on from."""

from pathlib import Path

from luthier.artifacts import publish
from luthier.cli.local_run import newest_checkpoint


def _save(output: Path, step: int) -> Path:
    folder = output / "checkpoints" / f"step-{step:06d}"
    temporary = folder.with_suffix(".tmp")
    temporary.mkdir(parents=True)
    (temporary / "state.json").write_text("{}")
    publish(temporary, folder, {"step": step})
    return folder


def test_a_run_goes_on_from_the_most_steps_and_not_from_the_last_name(tmp_path: Path) -> None:
    _save(tmp_path, 999_999)
    newest = _save(tmp_path, 1_000_000)
    assert newest_checkpoint(tmp_path) == str(newest)


def test_a_damaged_checkpoint_is_passed_over(tmp_path: Path) -> None:
    good, damaged = _save(tmp_path, 1), _save(tmp_path, 2)
    (damaged / "state.json").write_text("{ }")
    assert newest_checkpoint(tmp_path) == str(good)
