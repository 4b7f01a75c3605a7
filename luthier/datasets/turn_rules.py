"""Which turns may follow each other, and what makes a conversation odd: the same rules for every format.

Readers of formats bring turns with their places in the row; what is wrong is noted there. A row that breaks
a rule is bad; one that is only odd is warned about.
"""

from collections.abc import Sequence

from luthier.datasets.examples import Message, Role
from luthier.datasets.findings import Findings, key_names, shown

# A turn is a message and its place in the row.
Turns = list[tuple[str, Message]]


def check_order(turns: Sequence[tuple[str, Message]], found: Findings) -> None:
    """Report turns that cannot follow each other."""
    before: Role | None = None
    for index, (loc, message) in enumerate(turns):
        match message.role:
            case "system" if index > 0:
                found.error("chat.system_position", loc, "is a system turn; it may only be the first, once")
            case "user" if before == "user":
                text = (
                    "is a second user turn in a row; join the two, or put the assistant's answer between them"
                )
                found.error("chat.alternation", loc, text)
            case "assistant" if before in (None, "system"):
                found.error(
                    "chat.alternation",
                    loc,
                    "is an assistant turn before any user turn; put a user turn first",
                )
            case "tool" if before not in ("assistant", "tool"):
                text = "is a tool's answer that follows no assistant turn; put the call before it"
                found.error("chat.tool_call_unmatched", loc, text)
        before = message.role


def check_assistant(turns: Sequence[tuple[str, Message]], found: Findings) -> None:
    """Report what leaves nothing, or something odd, to learn from."""
    answers = [(loc, message) for loc, message in turns if message.role == "assistant"]
    if not answers:
        found.error(
            "chat.no_assistant", "", "the row has no assistant turn, so there is nothing to learn from"
        )
    elif not any(message.is_trained for _, message in answers):
        found.warn(
            "chat.no_weight", "", "every assistant turn has weight 0, so nothing is learnt from the row"
        )
    if answers and turns[-1][1].role != "assistant":
        found.warn(
            "chat.ends_without_answer", turns[-1][0], "comes after the last assistant turn and adds nothing"
        )
    for loc, message in turns:
        if message.tool_calls or (message.content or "").strip():
            continue
        if message.role == "assistant":
            text = "is an assistant turn without text: the model learns to say nothing"
            found.warn("chat.content_blank", loc, text)
        else:
            found.warn("chat.turn_blank", loc, f"is a {message.role} turn without text")


def check_tool_answers(turns: Turns, found: Findings) -> None:
    """Report a tool's answer whose `tool_call_id` is none of the calls before it.

    Answers without ids are matched by their order, where the calls have none either.
    """
    open_ids: list[str] = []
    anonymous = 0
    for loc, message in turns:
        if message.role == "assistant":
            ids = [call.get("id") for call in message.tool_calls]
            open_ids, anonymous = [id_ for id_ in ids if isinstance(id_, str)], ids.count(None)
        elif message.role == "tool" and message.tool_call_id in open_ids:
            open_ids.remove(message.tool_call_id or "")
        elif message.role == "tool" and message.tool_call_id is None and anonymous:
            anonymous -= 1
        elif message.role == "tool":
            found.error("chat.tool_call_unmatched", loc, _unmatched(message, open_ids))


def _unmatched(message: Message, open_ids: list[str]) -> str:
    what = "has no tool_call_id" if message.tool_call_id is None else f"answers {shown(message.tool_call_id)}"
    if not open_ids:
        return f"{what}, but no call before it waits for an answer"
    return f"{what}; the calls before it wait for {key_names(open_ids)}"
