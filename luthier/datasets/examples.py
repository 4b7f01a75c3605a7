"""What a row becomes: one `Example`, whatever the format of its file, and what can be wrong with it.

All readers end here and all rendering starts here. An `Issue` names its place in the words of the file's own
format, so that the message leads a user to the text to change.
"""

from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Any, Literal

Role = Literal["system", "user", "assistant", "tool"]


class Format(StrEnum):
    """The shapes of rows that are understood."""

    CHAT = "chat"
    PROMPT_COMPLETION = "prompt_completion"
    ALPACA = "alpaca"
    SHAREGPT = "sharegpt"
    TEXT = "text"


# A piece of a text, and whether special tokens that are written in it are parsed as such.
TextPiece = tuple[str, bool]


@dataclass(frozen=True, slots=True)
class Message:
    """One turn.

    Attributes:
        content: None only where there are tool calls.
        tool_calls: as chat templates take them: `arguments` is an object where the row gave its JSON.
        is_trained: False for an assistant turn of weight 0.
    """

    role: Role
    content: str | None
    tool_calls: tuple[dict[str, Any], ...] = ()
    tool_call_id: str | None = None
    name: str | None = None
    is_trained: bool = True


@dataclass(frozen=True, slots=True)
class Example:
    """One conversation, one prompt (as the user's turn) with its completion (as the assistant's), or a text.

    Attributes:
        messages: empty where there is a text.
        tools: JSON schemas of functions, for the chat template.
        text: all of it is trained on, as it is.
    """

    format: Format
    messages: tuple[Message, ...]
    tools: tuple[dict[str, Any], ...] = ()
    text: tuple[TextPiece, ...] = ()


@dataclass(frozen=True, slots=True)
class Issue:
    """Something that is wrong with a file, or worth knowing about it.

    Attributes:
        code: the kind, in one constant word for programs, such as `chat.role_invalid`.
        text: what is wrong and what to change, without the line.
        loc: place within the row, such as `messages[2].role`.
        line: from 1; None for the file as a whole.
    """

    code: str
    text: str
    loc: str = ""
    line: int | None = None

    @property
    def message(self) -> str:
        return f"Line {self.line}: {self.text}" if self.line else self.text[:1].upper() + self.text[1:]

    def at(self, line: int) -> "Issue":
        return replace(self, line=line)


class DatasetError(Exception):
    """A file that cannot be read on, or a row that cannot be used; `issue` says where and why."""

    def __init__(self, issue: Issue) -> None:
        super().__init__(issue.message)
        self.issue = issue
