"""A model's own tokenizer and chat template, read from its folder, without transformers.

`ModelTokenizer.encode_batch` turns texts into ids with the place of each token. Special tokens are parsed
where the template wrote them; where they stand in somebody's message they are spelled out as ordinary text,
so that no row can forge the end of a turn.
"""

import bisect
import json
import re
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from operator import itemgetter
from pathlib import Path
from typing import Any

from tokenizers import Encoding, Tokenizer

from luthier.errors import ExitCode, JobFailure

_NAMED_TOKENS = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")
# The largest vocabularies in use have some 35 MB; templates and settings some 100 kB.
_MAX_VOCABULARY_BYTES = 256 << 20
_MAX_WORDS_BYTES = 8 << 20
_TEMPLATE_FILE = "chat_template.jinja"
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


@dataclass(frozen=True, slots=True)
class SpannedText:
    """A text to encode.

    Attributes:
        spans: places whose tokens are asked for.
        literals: where special tokens are plain text.
    """

    text: str
    spans: tuple[Span, ...] = ()
    literals: tuple[Span, ...] = ()


@dataclass(frozen=True, slots=True)
class SpannedTokens:
    """The ids of a text and, for each span asked for, its tokens: those with any of its characters."""

    ids: list[int]
    spans: tuple[Span, ...]


class ModelTokenizer:
    """The tokenizer of one model.

    Attributes:
        chat_template: Jinja source, or None.
        named_tokens: `bos_token`, `eos_token` and their like, by name; what the model lacks is left out.
        special_tokens: the text of every special token.
        has_many_templates: whether that is the default one of several.
        starts_with_bos: whether a plain text is encoded behind a `bos_token`.
        empty_text: what the tokens of an empty text are: as a rule the `bos_token`, or nothing.

    Args:
        tokenizer: as loaded; its post-processor, truncation and padding are taken away.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        chat_template: str | None,
        named_tokens: Mapping[str, str],
        *,
        has_many_templates: bool = False,
    ) -> None:
        self.chat_template, self.named_tokens = chat_template, dict(named_tokens)
        self.has_many_templates = has_many_templates
        bos, empty = named_tokens.get("bos_token"), tokenizer.encode("")
        self.starts_with_bos = bos is not None and empty.tokens[:1] == [bos]
        self.empty_text = tokenizer.decode(empty.ids, skip_special_tokens=False)
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
        self._byte_lengths = _byte_lengths(tokenizer)

    def encode_spans(self, texts: Sequence[SpannedText]) -> list[SpannedTokens]:
        """Ids of texts, in their order, with the tokens of their spans; faster than `encode_batch`.

        Raises:
            ValueError: the tokenizer makes a special token even of plain text.
        """
        if not self._byte_lengths:
            return self._by_offsets(texts)
        plain = [text.text for text in texts if not text.literals]
        encoded = iter(self._tokenizer.encode_batch_fast(plain, add_special_tokens=False))
        found = [None if text.literals else self._by_bytes(text, next(encoded).ids) for text in texts]
        others = iter(
            self._by_offsets([text for text, tokens in zip(texts, found, strict=True) if tokens is None])
        )
        return [tokens if tokens is not None else next(others) for tokens in found]

    def special_spans(self, text: str, start: int = 0) -> tuple[Span, ...]:
        """Where special tokens stand in a text, which itself begins at `start`."""
        return tuple(
            Span(start + match.start(), start + match.end()) for match in self._special.finditer(text)
        )

    def token_of(self, text: str) -> int | None:
        """The id of one token; None where the vocabulary lacks it."""
        return self._tokenizer.token_to_id(text)

    def _by_bytes(self, text: SpannedText, ids: list[int]) -> SpannedTokens | None:
        """The tokens of spans by adding up the bytes of each; None where the sum is not right."""
        ends = list(accumulate(map(self._byte_lengths.__getitem__, ids)))
        is_ascii = text.text.isascii()
        size = len(text.text) if is_ascii else len(text.text.encode())
        if (ends[-1] if ends else 0) != size or not (is_ascii or unicodedata.is_normalized("NFC", text.text)):
            return None
        spans = []
        for span in text.spans:
            start, end = span.start, span.end
            if not is_ascii:
                start = len(text.text[:start].encode())
                end = start + len(text.text[span.start : end].encode())
            first = bisect.bisect_right(ends, start)
            # The token that holds the last byte is the first whose end is not before the span's.
            behind = min(bisect.bisect_left(ends, end) + 1, len(ids)) if end > start else first
            spans.append(Span(first, max(first, behind)))
        return SpannedTokens(ids, tuple(spans))

    def _by_offsets(self, texts: Sequence[SpannedText]) -> list[SpannedTokens]:
        encoded = self.encode_batch([(text.text, text.literals) for text in texts])
        return [
            SpannedTokens(tokens.ids, tuple(token_span(tokens, span) for span in text.spans))
            for text, tokens in zip(texts, encoded, strict=True)
        ]

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


def token_span(tokens: Tokens, span: Span) -> Span:
    """The tokens that hold any of the characters of a span."""
    first = bisect.bisect_right(tokens.offsets, span.start, key=itemgetter(1))
    behind = (
        bisect.bisect_left(tokens.offsets, span.end, key=itemgetter(0)) if span.end > span.start else first
    )
    return Span(first, max(first, behind))


def load_tokenizer(folder: Path) -> ModelTokenizer:
    """The tokenizer in a model's folder: tokenizer.json, and beside it the template and the named tokens.

    Raises:
        JobFailure: `model_not_found` without tokenizer.json, `model_load_failed` when a file is broken.
    """
    path = find_vocabulary(folder)
    try:
        tokenizer = Tokenizer.from_file(str(path))
    except Exception as error:  # the library raises nothing narrower
        raise _broken(path, error) from error
    words = read_model_words(folder)
    return ModelTokenizer(
        tokenizer,
        words.chat_template,
        words.named_tokens,
        has_many_templates=words.has_many_templates,
    )


def find_vocabulary(folder: Path) -> Path:
    """The tokenizer.json of a model's folder, of a size that can be read.

    Raises:
        JobFailure: `model_not_found` without one, `model_load_failed` when it is too large.
    """
    path = folder / "tokenizer.json"
    if not path.is_file():
        text = (
            f"The base model has no tokenizer.json in {folder.name}: pull it again, or convert its tokenizer"
        )
        raise JobFailure(text, "model_not_found", ExitCode.MISSING, "model")
    _check_size(path, _MAX_VOCABULARY_BYTES)
    return path


@dataclass(frozen=True)
class ModelWords:
    """What stands beside a tokenizer: the chat template, or None, and the tokens with a part to play.

    Attributes:
        has_many_templates: whether `chat_template` is the default one of several.
    """

    chat_template: str | None
    named_tokens: dict[str, str]
    has_many_templates: bool = False


def read_model_words(folder: Path) -> ModelWords:
    """The chat template and the named tokens in a model's folder; cheap, since the vocabulary is not read.

    Raises:
        JobFailure: `model_load_failed` when a file is broken.
    """
    config = _read_json(folder / "tokenizer_config.json")
    named = _read_json(folder / "special_tokens_map.json") | {
        name: config[name] for name in _NAMED_TOKENS if config.get(name) is not None
    }
    is_list = isinstance(config.get("chat_template"), list)
    has_many = is_list and not (folder / _TEMPLATE_FILE).is_file()
    try:
        tokens = {name: _content(named[name]) for name in _NAMED_TOKENS if named.get(name) is not None}
        return ModelWords(_chat_template(folder, config), tokens, has_many)
    except (KeyError, TypeError) as error:
        why = f"a token or a template in it has not the form of either ({error}); pull the model again"
        raise _broken(folder / "tokenizer_config.json", why) from error


def _chat_template(folder: Path, config: Mapping[str, Any]) -> str | None:
    path = folder / _TEMPLATE_FILE
    if path.is_file():
        return _read_text(path)
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
        value = json.loads(_read_text(path))
    except (ValueError, RecursionError) as error:
        raise _broken(path, error) from error
    return value if isinstance(value, dict) else {}


def _read_text(path: Path) -> str:
    _check_size(path, _MAX_WORDS_BYTES)
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise _broken(path, error) from error


def _check_size(path: Path, limit: int) -> None:
    size = path.stat().st_size
    if size > limit:
        raise _broken(path, f"it has {size:,} bytes, and {limit:,} is the most; pull the model again")


def _broken(path: Path, error: Exception | str) -> JobFailure:
    text = f"The base model's {path.name} cannot be read: {error}"
    return JobFailure(text, "model_load_failed", ExitCode.MISSING, "model")


def _tokens(encoding: Encoding) -> Tokens:
    return Tokens(encoding.ids, encoding.offsets)


def _append(tokens: Tokens, encoding: Encoding, start: int) -> None:
    tokens.ids.extend(encoding.ids)
    tokens.offsets.extend((start + first, start + last) for first, last in encoding.offsets)


def _byte_lengths(tokenizer: Tokenizer) -> list[int]:
    """How many bytes of text each token stands for, by id; empty where that is not so simple.

    A byte-level vocabulary writes every byte as one character. Whoever uses this has to see that the lengths
    add up to that of the text, and that it is normalised already.
    """
    if tokenizer.normalizer is not None and _state(tokenizer.normalizer).get("type") != "NFC":
        return []
    if tokenizer.pre_tokenizer is None or not _is_byte_level(_state(tokenizer.pre_tokenizer)):
        return []
    added = tokenizer.get_added_tokens_decoder()
    lengths = [0] * (max([*tokenizer.get_vocab(with_added_tokens=True).values(), -1]) + 1)
    for content, token in tokenizer.get_vocab(with_added_tokens=True).items():
        lengths[token] = len(added[token].content.encode()) if token in added else len(content)
    return lengths


def _state(part: Any) -> dict[str, Any]:
    state: dict[str, Any] = json.loads(part.__getstate__())
    return state


def _is_byte_level(state: Mapping[str, Any]) -> bool:
    if state["type"] == "Sequence":
        return any(_is_byte_level(part) for part in state["pretokenizers"])
    return bool(state["type"] == "ByteLevel" and not state["add_prefix_space"])
