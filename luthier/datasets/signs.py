"""Signs in a text of something wrong: characters that nobody sees, letters that were decoded wrongly, marks
that belong to chat templates, secrets.

They are warned about and never refused. `SUSPECT_BYTES` is a wider net for bytes of JSON, in RE2's words:
what it does not catch has none of these signs. `find_signs` looks at the text itself.
"""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import pyarrow as pa
import pyarrow.compute as pc

from luthier.datasets.examples import Example

# Joiners (U+200C, U+200D) are left out: Persian and the emoji of families need them.
_INVISIBLE = "\u200b\u2060\ufeff\u202a-\u202e\u2066-\u2069\U000e0000-\U000e007f"
_SECRETS = {
    "an AWS key": r"\b(?:AKIA|ASIA)[0-9A-Z]{16}\b",
    "a Hugging Face token": r"\bhf_[A-Za-z0-9]{30,}",
    "an API key": r"\bsk-[A-Za-z0-9_-]{20,}",
    "a GitHub token": r"\b(?:gh[pousr]_[A-Za-z0-9]{36}|github_pat_[A-Za-z0-9_]{22})",
    "a GitLab token": r"\bglpat-[A-Za-z0-9_-]{20}",
    "a Slack token": r"\bxox[abprs]-[A-Za-z0-9-]{10,}",
    "a Google key": r"\bAIza[0-9A-Za-z_-]{35}",
    "a Luthier key": r"\blk_[A-Za-z0-9]{8}_[A-Za-z0-9]{43}",
    "a private key": r"-----BEGIN [A-Z ]{0,20}PRIVATE KEY-----",
}
_SIGNS = {
    "content.control_chars": "[\x01-\x08\x0b\x0c\x0e-\x1f\x7f]",
    "content.invisible_chars": f"[{_INVISIBLE}]",
    "encoding.mojibake": "\ufffd|\u00c3[\u0080-\u00bf]|\u00e2\u20ac",
    "chat.special_tokens": (
        r"<\|[A-Za-z0-9_]{1,40}\|>|</?s>|\[/?INST\]|<</?SYS>>|<(?:start|end)_of_turn>"
        "|<\uff5c[^<>]{1,40}\uff5c>"
    ),
    "content.possible_secret": "|".join(_SECRETS.values()),
}
_ANY = "|".join(_SIGNS.values())

# The signs above as they stand in JSON, as bytes of UTF-8 or escaped; and escapes that only the exact parser
# tells apart: NUL, and a quotation mark, by which lost keys are found.
SUSPECT_BYTES = "|".join(
    (
        r"(?:^|[^\\])(?:\\\\)*\\[bf]",
        r"\\u00(?:[01]|22|7[fF]|3[cC])|\x7f",
        r"\\u(?:200[bB]|2060|202[a-eA-E]|206[6-9]|[fF][eE][fF][fF]|[dD][bB]40)",
        r"\xe2\x80[\x8b\xaa-\xae]|\xe2\x81[\xa0\xa6-\xa9]|\xef\xbb\xbf|\xf3\xa0[\x80\x81]",
        r"\xef\xbf\xbd|\xc3\x83\xc2|\xc3\xa2\xe2\x82\xac",
        r"\\u(?:[fF]{3}[dD]|00[cC]3|00[eE]2)|\xc3\xa2\\u20|\xc3\x83\\u00",
        r"<\||</?s>|\[/?INST\]|<</?SYS>>|<(?:start|end)_of_turn>|<\xef\xbd\x9c|<\\u[fF][fF]5[cC]",
        r"A[KS]IA[0-9A-Z]{8}|hf_[A-Za-z0-9]{12}|\bsk-[A-Za-z0-9_-]{12}|gh[pousr]_[A-Za-z0-9]{12}",
        r"github_pat_|glpat-|xox[abprs]-|AIza[0-9A-Za-z_-]{12}|lk_[A-Za-z0-9]{8}_|-----BEGIN ",
    )
)


@dataclass(frozen=True)
class Sign:
    """One sign.

    Attributes:
        positions: of the texts that have it.
        shown: the first that was found, safe to print.
    """

    code: str
    positions: tuple[int, ...]
    shown: str


def text_of(example: Example) -> str:
    """All that an example says; of a format string's parts only what rows put in."""
    return "\n".join((*(message.content or "" for message in example.messages), *_literals(example)))


def find_signs(texts: Sequence[str]) -> Iterator[Sign]:
    """The signs in some texts: RE2 finds them, many texts at a time."""
    array = pa.array(texts, pa.large_string())
    odd = pc.indices_nonzero(pc.match_substring_regex(array, _ANY))
    if len(odd) == 0:
        return
    places: list[int] = odd.to_pylist()
    for code, pattern in _SIGNS.items():
        hits = pc.indices_nonzero(pc.match_substring_regex(array.take(odd), pattern)).to_pylist()
        if hits:
            positions = tuple(places[hit] for hit in hits)
            yield Sign(code, positions, _shown(code, texts[positions[0]]))


def _literals(example: Example) -> Iterator[str]:
    """Texts that stand as they are; special tokens in the parts of a format string are meant."""
    if len(example.text) == 1:
        yield example.text[0][0]
    else:
        yield from (text for text, is_literal in example.text if not is_literal)


def _shown(code: str, text: str) -> str:
    match = re.search(_SIGNS[code], text)
    found = match[0] if match else ""
    if code != "content.possible_secret":
        return found[:40] if found.isprintable() else found[:40].encode("unicode_escape").decode()
    name = next((name for name, pattern in _SECRETS.items() if re.match(pattern, found)), "a key")
    return f"{name}, {found[:4]}… of {len(found)} characters"
