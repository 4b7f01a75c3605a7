"""The OpenAPI document as it is committed, `docs/openapi.json`: `python -m api.document` writes it anew.

Whoever changes the API sees the change of the document in the same commit; a test compares the two.
"""

import json
import sys
from pathlib import Path

from api.app import create_api

PATH = Path(__file__).parents[1] / "docs" / "openapi.json"


def document_text() -> str:
    """The document, one key a line."""
    return json.dumps(create_api().openapi(), indent=1, ensure_ascii=False) + "\n"


def main() -> int:
    PATH.write_text(document_text(), encoding="utf-8")
    sys.stdout.write(f"{PATH}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
