"""The catalogue of bad uploads is whole: each of its cases is a test that bears its number.

A case stands in the name of a test (`test_d24_...`) or in the id of a parameter (`D5-utf16`). Numbers are
read off what pytest collects, so that a case whose test is gone cannot be forgotten.
"""

import os
import re
import subprocess
import sys
from pathlib import Path

CASE_COUNT = 84
FILES = (
    "tests/luthier/datasets/test_bad_files.py",
    "tests/luthier/datasets/test_prepare.py",
    "tests/api/test_uploads.py",
    "tests/api/test_bad_jobs.py",
    "tests/luthier/test_quotas.py",
)

_NUMBER = re.compile(r"::test_d(\d+)_|[\[-]D(\d+)[-\]]")


def test_every_case_of_a_bad_upload_is_a_test() -> None:
    command = [sys.executable, "-m", "pytest", "--collect-only", "-q", "-p", "no:cacheprovider"]
    command += ["-p", "pytest_timeout", *FILES]
    # Plugins that nothing is collected by take as long to load as the tests.
    environment = os.environ | {"PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}
    root = Path(__file__).parents[1]
    collected = subprocess.run(
        command, cwd=root, env=environment, capture_output=True, text=True, check=True, timeout=120
    )
    tests = [line for line in collected.stdout.splitlines() if line.startswith("tests/")]
    found = {int(match[1] or match[2]) for test in tests for match in _NUMBER.finditer(test)}
    assert sorted({*range(1, CASE_COUNT + 1)} - found) == []
