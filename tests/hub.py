"""A model hub on loopback: the part of its protocol that the fetcher speaks, with switches for trouble.

Large files are redirected to a second port, as the real hub redirects to its storage, so that a token which
follows the redirect is seen. Every request is recorded.
"""

import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import urlsplit

import numpy as np
from safetensors.numpy import save
from tokenizers import Tokenizer, models

WEIGHTS = "model.safetensors"
CONFIG: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 2048,
}


def model_files(**config: Any) -> dict[str, bytes]:
    """The files of a tiny model: random weights, a tokenizer of two words, and `CONFIG` with changes."""
    weights = np.random.default_rng(0).random((64, 512), dtype=np.float32)
    return {
        "config.json": json.dumps(CONFIG | config).encode(),
        "tokenizer.json": Tokenizer(models.WordLevel({"a": 0, "b": 1}, "a")).to_str().encode(),
        "tokenizer_config.json": json.dumps({"chat_template": "{{ messages }}"}).encode(),
        WEIGHTS: save({"model.embed_tokens.weight": weights}),
    }


@dataclass(frozen=True)
class Asked:
    """One request; header names in lower case."""

    path: str
    headers: dict[str, str]

    @property
    def file(self) -> str:
        return self.path.rpartition("/")[2]


@dataclass
class Hub:
    """What the hub holds, and how it behaves.

    Attributes:
        token: asked for, where there is one; without it, models are `gated`.
        statuses: given to the next requests instead of an answer.
        cut_at: where answers with weights break off, in bytes from the file's start.
        ranges: whether a part of a file can be asked for.
        claimed: sizes of files that the hub makes up.
        served: contents that are sent instead of the true ones.
        held: where set, answers with weights send half, then set `halfway` and wait for it.
    """

    url: str = ""
    storage_url: str = ""
    models: dict[str, dict[str, bytes]] = field(default_factory=dict)
    token: str | None = None
    statuses: list[int] = field(default_factory=list)
    cut_at: int | None = None
    ranges: bool = True
    claimed: dict[str, int] = field(default_factory=dict)
    served: dict[str, bytes] = field(default_factory=dict)
    held: threading.Event | None = None
    halfway: threading.Event = field(default_factory=threading.Event)
    asked: list[Asked] = field(default_factory=list)

    def files_asked(self) -> list[str]:
        """Names of the files asked for, in order, each once."""
        return list(dict.fromkeys(asked.file for asked in self.asked if "/resolve/" in asked.path))

    def ranges_asked(self, name: str) -> list[str | None]:
        """The `Range` of each request to the storage for a large file."""
        return [
            a.headers.get("range") for a in self.asked if a.path.startswith("/storage/") and a.file == name
        ]

    def commit(self, model_id: str) -> str:
        """A commit that changes with the contents."""
        files = self.models[model_id]
        return _sha1(b"".join(name.encode() + files[name] for name in sorted(files)))

    def describe(self, model_id: str) -> dict[str, Any]:
        """The hub's answer about a model."""
        files = self.models[model_id]
        siblings = [self._sibling(name, content) for name, content in files.items()]
        return {"id": model_id, "sha": self.commit(model_id), "private": False, "siblings": siblings}

    def _sibling(self, name: str, content: bytes) -> dict[str, Any]:
        size = self.claimed.get(name, len(content))
        blob = _sha1(b"blob %d\0" % len(content) + content)
        if not is_large(name):
            return {"rfilename": name, "size": size, "blobId": blob}
        lfs = {"sha256": hashlib.sha256(content).hexdigest(), "size": size, "pointerSize": 134}
        return {"rfilename": name, "size": size, "blobId": "0" * 40, "lfs": lfs}


def _sha1(content: bytes) -> str:
    return hashlib.sha1(content, usedforsecurity=False).hexdigest()


def is_large(name: str) -> bool:
    """Whether the hub keeps a file in its storage."""
    return name.endswith((".safetensors", ".bin"))


@contextmanager
def running_hub() -> Iterator[Hub]:
    """An empty hub that answers until the block ends."""
    hub = Hub()
    handler = type("Handler", (_Handler,), {"hub": hub})
    servers = [ThreadingHTTPServer(("127.0.0.1", 0), handler) for _ in range(2)]
    hub.url, hub.storage_url = (f"http://127.0.0.1:{server.server_address[1]}" for server in servers)
    threads = [threading.Thread(target=server.serve_forever, args=(0.01,)) for server in servers]
    for thread in threads:
        thread.start()
    try:
        yield hub
    finally:
        if hub.held is not None:
            hub.held.set()
        for server, thread in zip(servers, threads, strict=True):
            server.shutdown()
            thread.join()
            server.server_close()


class _Handler(BaseHTTPRequestHandler):
    hub: Hub
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        hub = self.hub
        # A client that takes us for a proxy names the host as well.
        path = urlsplit(self.path).path
        hub.asked.append(Asked(path, {name.lower(): value for name, value in self.headers.items()}))
        if hub.statuses:
            self._answer(hub.statuses.pop(0), {"Retry-After": "0"})
        elif path.startswith("/storage/"):
            self._send_file(path.removeprefix("/storage/"))
        elif hub.token and self.headers.get("Authorization") != f"Bearer {hub.token}":
            self._answer(403 if "Authorization" in self.headers else 401, {"X-Error-Code": "GatedRepo"})
        elif path.startswith("/api/models/"):
            self._describe(path.removeprefix("/api/models/"))
        elif is_large(path):
            self._answer(302, {"Location": f"{hub.storage_url}/storage{path}"})
        else:
            self._send_file(path.removeprefix("/"))

    def _describe(self, model_id: str) -> None:
        if model_id in self.hub.models:
            self._answer(
                200, {"Content-Type": "application/json"}, json.dumps(self.hub.describe(model_id)).encode()
            )
        else:
            self._answer(404, {"X-Error-Code": "RepoNotFound"})

    def _send_file(self, path: str) -> None:
        model_id, _, rest = path.partition("/resolve/")
        commit, _, name = rest.partition("/")
        if self.hub.commit(model_id) != commit:
            self._answer(404, {"X-Error-Code": "RevisionNotFound"})
            return
        content = self.hub.served.get(name, self.hub.models[model_id][name])
        wanted = self.headers.get("Range")
        start = int(wanted.removeprefix("bytes=").removesuffix("-")) if wanted and self.hub.ranges else 0
        headers = {"Content-Range": f"bytes {start}-{len(content) - 1}/{len(content)}"} if start else {}
        self._answer(206 if start else 200, headers, content[start:], cut_at=self._cut_at(name, start))

    def _cut_at(self, name: str, start: int) -> int | None:
        cut_at = self.hub.cut_at
        return max(0, cut_at - start) if cut_at is not None and is_large(name) else None

    def _answer(
        self, status: int, headers: dict[str, str], body: bytes = b"", *, cut_at: int | None = None
    ) -> None:
        self.send_response(status)
        for name, value in (headers | {"Content-Length": str(len(body))}).items():
            self.send_header(name, value)
        self.end_headers()
        if cut_at is not None:
            body, self.close_connection = body[:cut_at], True
        half = len(body) // 2
        self.wfile.write(body[:half])
        if self.hub.held is not None and self.path.startswith("/storage/"):
            self.hub.halfway.set()
            self.hub.held.wait()
        self.wfile.write(body[half:])

    def log_message(self, *_: object) -> None:
        """Say nothing."""
