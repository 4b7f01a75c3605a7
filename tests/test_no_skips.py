"""The plugin of `.ci/run`: a skipped test fails the session."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@pytest.mark.parametrize(
    ("body", "arguments", "code"),
    [
        ("pytest.skip('no server')", ["-p", "tests.no_skips"], pytest.ExitCode.TESTS_FAILED),
        ("pytest.skip('no server')", [], pytest.ExitCode.OK),
        ("assert True", ["-p", "tests.no_skips"], pytest.ExitCode.OK),
        ("assert False", ["-p", "tests.no_skips"], pytest.ExitCode.TESTS_FAILED),
    ],
)
def test_a_session_with_a_skip_fails(
    tmp_path: Path, body: str, arguments: list[str], code: pytest.ExitCode
) -> None:
    (tmp_path / "test_it.py").write_text(f"import pytest\n\ndef test_it():\n    {body}\n")
    command = [sys.executable, "-m", "pytest", "-c", "/dev/null", *arguments, str(tmp_path)]
    environment = os.environ | {"PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}
    answer = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert answer.returncode == code, answer.stdout
    assert answer.stdout.splitlines()[-1].startswith("===")
