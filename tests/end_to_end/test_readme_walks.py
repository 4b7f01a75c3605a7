"""The README's walks over HTTP as they are written: with curl, and with the `openai` package."""

import re
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest

from tests.end_to_end.conftest import Service

pytestmark = [pytest.mark.full, pytest.mark.timeout(400)]
_ROOT = Path(__file__).parents[2]
_ADDRESS = "http://127.0.0.1:8000"


def _block(heading: str) -> str:
    """The first fenced block below a heading."""
    text = (_ROOT / "README.md").read_text("utf-8").partition(f"\n## {heading}\n")[2]
    found = re.search(r"^```\w+\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    assert found is not None
    return found[1]


@pytest.fixture
def walker(service: Service, model_dir: Path, tmp_path: Path) -> Service:
    """A started service where the README's base model is a quick one; its files lie beside the reader."""
    shutil.copytree(model_dir / "tiny", tmp_path / "models" / "smollm2-135m-instruct")
    (tmp_path / "examples").symlink_to(_ROOT / "examples")
    service.environment |= {
        "LUTHIER_MODEL_DIR": str(tmp_path / "models"),
        "LUTHIER_API_KEY": service.key,
    }
    service.start("up")
    service.wait_until_ready()
    return service


def _walk(service: Service, command: list[str], text: str) -> str:
    """What a reader sees who types a block; nothing but the port is another one."""
    assert _ADDRESS in text
    done = subprocess.run(
        command,
        input=text.replace(_ADDRESS, service.url),
        env=service.environment,
        cwd=service.folder,
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, ""), done.stdout
    return done.stdout


def _names(archive: Path) -> set[str]:
    with tarfile.open(archive) as found:
        return {member.name for member in found}


def test_with_curl(walker: Service, tmp_path: Path) -> None:
    seen = _walk(walker, ["bash", "-eu", "-o", "pipefail"], _block("With curl"))
    assert "event: done" in seen
    assert '"status":"succeeded"' in seen
    assert (tmp_path / "adapter_model.safetensors").stat().st_size > 1000
    assert "adapter/adapter_model.safetensors" in _names(tmp_path / "result.tar")


def test_with_the_openai_package(walker: Service, tmp_path: Path) -> None:
    seen = _walk(walker, [sys.executable, "-P", "-"], _block("With the `openai` package"))
    assert seen.splitlines()[-1] == "The job has successfully completed"
    assert (tmp_path / "metrics.csv").read_text().startswith("step,train_loss")
    assert "adapter/adapter_model.safetensors" in _names(tmp_path / "result.tar")
