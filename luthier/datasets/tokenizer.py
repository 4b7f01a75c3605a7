"""A model's own tokenizer and chat template, read from its folder, without transformers.

`ModelTokenizer.encode_batch` turns texts into ids with the place of each token. Special tokens are parsed
where the template wrote them; where they stand in somebody's message they are spelled out as ordinary text,
so that no row can forge the end of a turn.
"""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tokenizers import Encoding, Tokenizer

from luthier.errors import ExitCode, JobFailure

_NAMED_TOKENS = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")
_SPACE = r"\s*"


@dataclass(frozen=True, slots=True)
class Span:
    """Characters of a text from `start` up to, not including, `end`."""

    start: int
    end: int


@dataclass(frozen=True, slots=True)
class Tokens:
    """The ids of a text and, for each, the characters that it stands for."""

    ids: list[int]
    offsets: list[tuple[int, int]]


class ModelTokenizer:
    """The tokenizer of one model.

    Attributes:
        chat_template: Jinja source, or None.
        named_tokens: `bos_token`, `eos_token` and their like, by name; what the model lacks is left out.
        special_tokens: the text of every special token.
        starts_with_bos: whether a plain text is encoded behind a `bos_token`.

    Args:
        tokenizer: as loaded; its post-processor, truncation and padding are taken away.
    """

    def __init__(
        self, tokenizer: Tokenizer, chat_template: str | None, named_tokens: Mapping[str, str]
    ) -> None:
        self.chat_template, self.named_tokens = chat_template, dict(named_tokens)
        bos = named_tokens.get("bos_token")
        self.starts_with_bos = bos is not None and tokenizer.encode("").tokens[:1] == [bos]
        # It would add special tokens of its own and cut white space out of the offsets.
        tokenizer.post_processor = None
        tokenizer.no_truncation()
        tokenizer.no_padding()
        self._tokenizer = tokenizer
        special = [token for token in tokenizer.get_added_tokens_decoder().values() if token.special]
        self.special_tokens = tuple(token.content for token in special)
        self._special_ids = {tokenizer.token_to_id(content) for content in self.special_tokens}
        longest_first = sorted(special, key=lambda token: len(token.content), reverse=True)
        # Some special tokens take the white space beside them along.
        alternatives = (
            _SPACE * token.lstrip + re.escape(token.content) + _SPACE * token.rstrip
            for token in longest_first
        )
        self._special = re.compile("|".join(alternatives) or "(?!)")

    def encode_batch(self, texts: Sequence[tuple[str, Sequence[Span]]]) -> list[Tokens]:
        """Tokens of texts, in their order.

        Args:
            texts: each with the spans in which special tokens are plain text.
        Raises:
            ValueError: the tokenizer makes a special token even of plain text.
        """
        plain = [text for text, literals in texts if not literals]
        encoded = iter(self._tokenizer.encode_batch(plain, add_special_tokens=False))
        return [
            self._encode_around(text, literals) if literals else _tokens(next(encoded))
            for text, literals in texts
        ]

    def _encode_around(self, text: str, literals: Sequence[Span]) -> Tokens:
        """Encode the special tokens outside `literals` one by one, and all between them as plain text."""
        tokens, position = Tokens([], []), 0
        for match in self._special.finditer(text):
            if any(match.start() < literal.end and match.end() > literal.start for literal in literals):
                continue
            self._append_plain(tokens, text, position, match.start())
            _append(tokens, self._tokenizer.encode(match.group(), add_special_tokens=False), match.start())
            position = match.end()
        self._append_plain(tokens, text, position, len(text))
        return tokens

    def _append_plain(self, tokens: Tokens, text: str, start: int, end: int) -> None:
        if start == end:
            return
        self._tokenizer.encode_special_tokens = True
        try:
            encoding = self._tokenizer.encode(text[start:end], add_special_tokens=False)
        finally:
            self._tokenizer.encode_special_tokens = False
        if not self._special_ids.isdisjoint(encoding.ids):
            raise ValueError("the text holds a special token that this tokenizer cannot spell as plain text")
        _append(tokens, encoding, start)


def load_tokenizer(folder: Path) -> ModelTokenizer:
    """The tokenizer in a model's folder: tokenizer.json, and beside it the template and the named tokens.

    Raises:
        JobFailure: `model_not_found` without tokenizer.json, `model_load_failed` when a file is broken.
    """
    path = folder / "tokenizer.json"
    if not path.is_file():
        text = (
            f"The base model has no tokenizer.json in {folder.name}: pull it again, or convert its tokenizer"
        )
        raise JobFailure(text, "model_not_found", ExitCode.MISSING, "model")
    try:
        tokenizer = Tokenizer.from_file(str(path))
    except Exception as error:  # the library raises nothing narrower
        raise _broken(path, error) from error
    config = _read_json(folder / "tokenizer_config.json")
    named = _read_json(folder / "special_tokens_map.json") | {
        name: config[name] for name in _NAMED_TOKENS if config.get(name) is not None
    }
    tokens = {name: _content(named[name]) for name in _NAMED_TOKENS if named.get(name) is not None}
    return ModelTokenizer(tokenizer, _chat_template(folder, config), tokens)


def _chat_template(folder: Path, config: Mapping[str, Any]) -> str | None:
    path = folder / "chat_template.jinja"
    if path.is_file():
        return path.read_text(encoding="utf-8")
    template = config.get("chat_template")
    if isinstance(template, list):
        named = {entry["name"]: str(entry["template"]) for entry in template}
        return named.get("default")
    return template if isinstance(template, str) else None


def _content(token: Any) -> str:
    return str(token["content"]) if isinstance(token, dict) else str(token)


def _read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file; empty when there is no file."""
    if not path.is_file():
        return {}
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise _broken(path, error) from error
    return value if isinstance(value, dict) else {}


def _broken(path: Path, error: Exception) -> JobFailure:
    text = f"The base model's {path.name} cannot be read: {error}"
    return JobFailure(text, "model_load_failed", ExitCode.MISSING, "model")


def _tokens(encoding: Encoding) -> Tokens:
    return Tokens(encoding.ids, encoding.offsets)


def _append(tokens: Tokens, encoding: Encoding, start: int) -> None:
    tokens.ids.extend(encoding.ids)
    tokens.offsets.extend((start + first, start + last) for first, last in encoding.offsets)
