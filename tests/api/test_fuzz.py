"""A bounded part of `make fuzz`: requests made from the OpenAPI document, from one seed."""

from pathlib import Path

from tests.fuzz.__main__ import fuzz
from tests.fuzz.site import running_site


def test_no_request_made_from_the_document_is_answered_wrongly(tmp_path: Path) -> None:
    with running_site(tmp_path / "data") as site:
        found = fuzz(
            site, seed=7, max_examples=2, phases="examples,fuzzing,stateful", more=["--max-time", "12"]
        )
    assert found == 0
