"""A client that gives up on nothing: it repeats a call with the same Idempotency-Key until it is answered."""

import json
import threading
import time
from collections.abc import Mapping
from typing import Any

import httpx

_PAUSE_SECONDS = 0.05
_PATIENCE_SECONDS = 120.0


class PatientClient:
    """Calls of one caller; threads may share it."""

    def __init__(self, url: str, key: str) -> None:
        headers = {"Authorization": f"Bearer {key}"}
        self._http = httpx.Client(base_url=url, headers=headers, timeout=10)
        self._lock = threading.Lock()
        self.repeated_count = 0

    def close(self) -> None:
        self._http.close()

    def upload(self, row_count: int = 16) -> str:
        """Id of a training file with rows that differ."""
        data = b"".join(json.dumps(_row(number)).encode() + b"\n" for number in range(row_count))
        form = {"data": {"purpose": "fine-tune"}, "files": {"file": ("rows.jsonl", data)}}
        return str(self._insist("POST", "/v1/files", **form)["id"])

    def submit(self, file_id: str, number: int, *, steps: int = 6, save_steps: int = 2, **more: Any) -> str:
        """Id of a job that was accepted; its seed is `number`, so that orders find it."""
        body: dict[str, Any] = {"model": "tiny", "training_file": file_id, "seed": number} | more
        body["qlora"] = {"max_steps": steps, "save_steps": save_steps} | body.get("qlora", {})
        body["metadata"] = {"number": str(number)}
        headers = {"Idempotency-Key": f"chaos-{number}"}
        return str(self._insist("POST", "/v1/fine_tuning/jobs", json=body, headers=headers)["id"])

    def cancel(self, job_id: str) -> Mapping[str, Any]:
        return self._insist("POST", f"/v1/fine_tuning/jobs/{job_id}/cancel")

    def post(self, path: str) -> Mapping[str, Any]:
        return self._insist("POST", path)

    def job(self, job_id: str) -> Mapping[str, Any]:
        return self._insist("GET", f"/v1/fine_tuning/jobs/{job_id}")

    def is_answered(self) -> bool:
        """Whether the API and its database answer now."""
        try:
            return self._http.get("/v1/fine_tuning/jobs?limit=1", timeout=5).status_code == 200
        except httpx.TransportError:
            return False

    def _insist(self, method: str, path: str, **request: Any) -> Mapping[str, Any]:
        deadline = time.monotonic() + _PATIENCE_SECONDS
        while time.monotonic() < deadline:
            try:
                answer = self._http.request(method, path, **request)
            except httpx.TransportError:
                pass
            else:
                if answer.status_code < 500 and answer.status_code != 429:
                    assert answer.status_code == 200, f"{path}: {answer.status_code} {answer.text[:500]}"
                    found: Mapping[str, Any] = answer.json()
                    return found
            with self._lock:
                self.repeated_count += 1
            time.sleep(_PAUSE_SECONDS)
        raise AssertionError(f"{method} {path} was not answered in {_PATIENCE_SECONDS:.0f} s")


def _row(number: int) -> dict[str, Any]:
    asked = {"role": "user", "content": f"Question {number}"}
    return {"messages": [asked, {"role": "assistant", "content": f"Answer {number}"}]}
