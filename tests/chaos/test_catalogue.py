"""The catalogue of faults is whole: each of F1 to F56 is shown by a test, or has a reason why it is not.

A fault stands in the name of a test (`test_f16_...`), in the id of a parameter (`F28-newest`) or in a
docstring (`F7: ...`); `SHOWN` names the tests that bear no number. Tests are read, not run.
"""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.chaos.catalogue import LEFT_OUT, SHOWN, WORDS

ROOT = Path(__file__).parents[2]
FAULT_COUNT = 56
_NUMBER = re.compile(r"\bF(\d{1,2})\b")
_NAME = re.compile(r"test_f(\d{1,2})_")
_ID = re.compile(r"F(\d{1,2})-")


def _tests() -> Iterator[tuple[str, ast.FunctionDef]]:
    for path in sorted((ROOT / "tests").rglob("test_*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.FunctionDef) and node.name.startswith("test_"):
                yield f"{path.relative_to(ROOT / 'tests')}::{node.name}", node


def _numbers(node: ast.FunctionDef) -> set[int]:
    """The faults that a test bears in its name, docstring and parameters."""
    texts = [
        part.value for one in node.decorator_list for part in ast.walk(one) if isinstance(part, ast.Constant)
    ]
    found = [*_NAME.findall(node.name), *_NUMBER.findall(ast.get_docstring(node) or "")]
    found += [match[1] for text in texts if isinstance(text, str) and (match := _ID.match(text))]
    return {int(number) for number in found}


@pytest.fixture(scope="module")
def tests() -> dict[str, ast.FunctionDef]:
    """All tests by file and name."""
    return dict(_tests())


def test_every_fault_is_shown_or_has_a_reason(tests: dict[str, ast.FunctionDef]) -> None:
    shown = {number for node in tests.values() for number in _numbers(node)} | SHOWN.keys()
    assert sorted({*range(1, FAULT_COUNT + 1)} - shown - LEFT_OUT.keys()) == []


def test_what_the_catalogue_names_is_there(tests: dict[str, ast.FunctionDef]) -> None:
    assert sorted(name for names in SHOWN.values() for name in names if name not in tests) == []


def test_what_is_shown_needs_no_reason(tests: dict[str, ast.FunctionDef]) -> None:
    shown = {number for node in tests.values() for number in _numbers(node)} | SHOWN.keys()
    assert (sorted(shown & LEFT_OUT.keys()), sorted(WORDS)) == ([], list(range(1, FAULT_COUNT + 1)))
