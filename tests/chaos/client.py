"""A client that gives up on nothing: it repeats a call with the same Idempotency-Key until it is answered."""

import json
import threading
import time
from collections.abc import Mapping
from typing import Any, Literal

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
        form = {"data": {"purpose": "fine-tune"}, "files": {"file": ("rows.jsonl", _rows(row_count))}}
        return str(self._insist("POST", "/v1/files", **form)["id"])

    def submit(self, file_id: str, number: int, **fields: Any) -> str:
        """Id of a job that was accepted; its seed is `number`, so that orders find it."""
        body, headers = _job(file_id, number, **fields), _headers(number)
        return str(self._insist("POST", "/v1/fine_tuning/jobs", content=body, headers=headers)["id"])

    def build_submit(self, file_id: str, number: int, **fields: Any) -> bytes:
        """The same request as bytes, for who will not hear the answer."""
        body = _job(file_id, number, **fields)
        return self._head("/v1/fine_tuning/jobs", len(body), _headers(number)) + body

    def build_half_an_upload(self) -> bytes:
        """The first half of an upload, with some of its rows."""
        begin = '--b\r\nContent-Disposition: form-data; name="purpose"\r\n\r\nfine-tune\r\n--b\r\n'
        file = 'Content-Disposition: form-data; name="file"; filename="rows.jsonl"\r\n\r\n'
        body = f"{begin}{file}".encode() + _rows(4000)
        headers = {"Content-Type": "multipart/form-data; boundary=b"}
        return self._head("/v1/files", 2 * len(body), headers) + body

    def wish(self, job_id: str, wish: Literal["cancel", "pause", "resume"]) -> Mapping[str, Any]:
        """Ask for it; a job that has ended meanwhile stays as it is."""
        return self._insist("POST", f"/v1/fine_tuning/jobs/{job_id}/{wish}", or_code="job_already_terminal")

    def is_answered(self) -> bool:
        """Whether the API and its database answer now."""
        try:
            return self._http.get("/v1/fine_tuning/jobs?limit=1", timeout=5).status_code == 200
        except httpx.TransportError:
            return False

    def _head(self, path: str, size_bytes: int, headers: Mapping[str, str]) -> bytes:
        named = {
            **dict(self._http.headers),
            **headers,
            "Host": "127.0.0.1",
            "Content-Length": str(size_bytes),
        }
        lines = [f"POST {path} HTTP/1.1", *(f"{name}: {value}" for name, value in named.items()), "", ""]
        return "\r\n".join(lines).encode()

    def _insist(
        self, method: str, path: str, *, or_code: str | None = None, **request: Any
    ) -> Mapping[str, Any]:
        deadline = time.monotonic() + _PATIENCE_SECONDS
        while time.monotonic() < deadline:
            try:
                answer = self._http.request(method, path, **request)
            except httpx.TransportError:
                pass
            else:
                if answer.status_code < 500 and answer.status_code != 429:
                    if or_code is not None and (answer.json()["error"] or {}).get("code") == or_code:
                        return {}
                    assert answer.status_code == 200, f"{path}: {answer.status_code} {answer.text[:500]}"
                    found: Mapping[str, Any] = answer.json()
                    return found
            with self._lock:
                self.repeated_count += 1
            time.sleep(_PAUSE_SECONDS)
        raise AssertionError(f"{method} {path} was not answered in {_PATIENCE_SECONDS:.0f} s")


def _job(
    file_id: str,
    number: int,
    *,
    steps: int = 6,
    save_steps: int = 2,
    qlora: Mapping[str, Any] | None = None,
    **more: Any,
) -> bytes:
    body: dict[str, Any] = {"model": "tiny", "training_file": file_id, "seed": number}
    body["qlora"] = {"max_steps": steps, "save_steps": save_steps} | dict(qlora or {})
    return json.dumps(body | {"metadata": {"number": str(number)}} | more).encode()


def _headers(number: int) -> dict[str, str]:
    return {"Content-Type": "application/json", "Idempotency-Key": f"chaos-{number}"}


def _rows(count: int) -> bytes:
    return b"".join(json.dumps(_row(number)).encode() + b"\n" for number in range(count))


def _row(number: int) -> dict[str, Any]:
    asked = {"role": "user", "content": f"Question {number}"}
    return {"messages": [asked, {"role": "assistant", "content": f"Answer {number}"}]}
