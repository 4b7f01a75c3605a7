"""How what the server told is shown where no server can be made to tell it."""

import pytest

from luthier.cli.reports import say_details


def test_details_of_a_failure_are_lines_with_their_numbers(capsys: pytest.CaptureFixture[str]) -> None:
    say_details(
        [
            {"loc": "memory", "message": "Memory ran out at step 3", "step": 3, "peak_memory_bytes": 2048},
            {"loc": "training_file", "line": 7, "message": "Line 7: no assistant turn"},
        ]
    )
    assert capsys.readouterr().err.splitlines() == [
        "  Memory ran out at step 3: step 3, peak memory bytes 2,048",
        "  Line 7: no assistant turn",
    ]
