"""Named templates as Jinja: for rendering, for `apply_chat_template`, and for chat_template.jinja.

`jinja` is the one way in. What a template has no words for (functions, tool calls, turns of tools) its Jinja
refuses by name.
"""

from luthier.datasets.named_templates import (
    CONTENT,
    EMPTY_THOUGHT,
    TOOLS_BEFORE,
    TOOLS_BEHIND,
    Named,
    NamedTemplate,
    Slots,
)


def jinja(template: NamedTemplate) -> str:
    """The template as Jinja, which prints what its slots say.

    A system turn that is given is printed even when it is empty. Where a template ends with `eos_token` and
    its answers have no end of their own, it stands behind the last answer only.
    """
    return _Writer(template).source()


class _Writer:
    """Writes one template, on one line, since line ends between blocks would be printed."""

    def __init__(self, template: NamedTemplate) -> None:
        self._template = template

    def source(self) -> str:
        template = self._template
        parts = [_printed(template.prefix, ""), self._choice_of_system()]
        if not template.fuses_system:
            parts.append(self._system())
        return "".join([*parts, self._turns(), self._end()])

    def _choice_of_system(self) -> str:
        default = _quoted(self._template.default_system) if self._template.default_system else "none"
        return (
            f"{{% set system = {default} %}}{{% set turns = messages %}}"
            "{% if messages and messages[0]['role'] == 'system' %}"
            "{% set system = messages[0]['content'] %}{% set turns = messages[1:] %}{% endif %}"
        )

    def _system(self) -> str:
        template = self._template
        plain = f"{{% if system is not none %}}{_printed(template.system, 'system')}{{% endif %}}"
        if not template.has_tools:
            return f"{{% if tools %}}{_refused('functions', template.name)}{{% endif %}}{plain}"
        before, behind = _around(template.system)
        opening = "{% if system %}{{ system ~ '\\n\\n' }}{% endif %}"
        listed = "{% for tool in tools %}{{ '\\n' ~ (tool | tojson) }}{% endfor %}"
        with_tools = (
            f"{_literal(before)}{opening}{_literal(TOOLS_BEFORE)}{listed}{_literal(TOOLS_BEHIND + behind)}"
        )
        return f"{{% if tools %}}{with_tools}{{% else %}}{plain}{{% endif %}}"

    def _turns(self) -> str:
        template = self._template
        content = "message['content']"
        fused = ""
        if template.fuses_system:
            text = _joined(template.system, "system")
            fused = (
                f"{{% set content = {content} %}}{{% if loop.first and system is not none %}}"
                f"{{% set content = {text} ~ content %}}{{% endif %}}"
            )
            content = "content"
        last_query = (
            "{% set last = namespace(query=-1) %}{% for message in turns %}"
            "{% if message['role'] == 'user' %}{% set last.query = loop.index0 %}{% endif %}{% endfor %}"
        )
        return (
            f"{last_query if template.is_reasoning else ''}"
            f"{{% for message in turns %}}{fused}"
            f"{{% if message['role'] == 'user' %}}{_printed(template.user, content)}"
            f"{{% elif message['role'] == 'assistant' %}}{self._answer()}"
            f"{{% elif message['role'] == 'tool' %}}{self._tool_answer()}"
            f"{{% else %}}{_refused('turns of the role `system` here', template.name)}"
            "{% endif %}{% endfor %}"
        )

    def _answer(self) -> str:
        template = self._template
        plain = _printed(template.assistant, "message['content']")
        if template.is_reasoning:
            plain = self._reasoned()
        if not template.has_tools:
            called = f"{{% if message['tool_calls'] %}}{_refused('tool calls', template.name)}{{% endif %}}"
            return called + _printed(template.header, "") + plain
        _, behind = _around(template.assistant)
        one_call = (
            "{{ '<tool_call>\\n{\"name\": \"' ~ call['function']['name'] ~ '\", \"arguments\": ' ~ "
            "(call['function']['arguments'] | tojson) ~ '}\\n</tool_call>' }}"
        )
        calls = (
            "{% if message['content'] %}{{ message['content'] ~ '\\n' }}{% endif %}"
            "{% for call in message['tool_calls'] %}{% if not loop.first %}{{ '\\n' }}{% endif %}"
            f"{one_call}{{% endfor %}}{_literal(behind)}"
        )
        header = _printed(template.header, "")
        return f"{header}{{% if message['tool_calls'] %}}{calls}{{% else %}}{plain}{{% endif %}}"

    def _reasoned(self) -> str:
        """An answer with its thoughts where it is the last, and without them before, as Qwen3 does."""
        answer = self._template.assistant
        open_, close = _quoted("<think>"), _quoted("</think>")
        bare = (
            f"{{% if {close} in text %}}{{% set text = text.split({close})[-1].lstrip('\\n') %}}{{% endif %}}"
        )
        filled = (
            f"{{% if {open_} not in text and {close} not in text %}}{_literal(EMPTY_THOUGHT)}"
            "{% set text = text.lstrip('\\n') %}{% endif %}"
        )
        return (
            "{% set text = message['content'] %}"
            f"{{% if loop.index0 < last.query %}}{bare}{{% else %}}{filled}{{% endif %}}"
            f"{_printed(answer, 'text')}"
        )

    def _tool_answer(self) -> str:
        template = self._template
        if template.tool is None:
            return _refused("turns of tools", template.name)
        if len(template.tool) == 1 and "<tool_response>" in str(template.tool[0]):
            # The answers of several tools share one turn.
            begins = "loop.first or turns[loop.index0 - 1]['role'] != 'tool'"
            ends = "loop.last or turns[loop.index0 + 1]['role'] != 'tool'"
            return (
                f"{{% if {begins} %}}{_literal('<|im_start|>user')}{{% endif %}}"
                "{{ '\\n<tool_response>\\n' ~ message['content'] ~ '\\n</tool_response>' }}"
                f"{{% if {ends} %}}{_literal('<|im_end|>' + chr(10))}{{% endif %}}"
            )
        return _printed(template.tool, "message['content']")

    def _end(self) -> str:
        template = self._template
        asked = f"{{% if add_generation_prompt %}}{_printed(template.header, '')}"
        if template.ends_with_eos and template.end_of_turn is None:
            asked += "{% elif turns and turns[-1]['role'] == 'assistant' %}{{ eos_token }}"
        return asked + "{% endif %}"


def _printed(slots: Slots, content: str) -> str:
    """Jinja that prints slots, with the value of the expression `content` for the content."""
    return "".join(
        f"{{{{ {slot.value} }}}}" if isinstance(slot, Named) else _filled(slot, content) for slot in slots
    )


def _filled(slot: str, content: str) -> str:
    return f"{{{{ {content} }}}}".join(_literal(part) for part in slot.split(CONTENT))


def _joined(slots: Slots, content: str) -> str:
    """One Jinja expression of slots that hold no named token."""
    before, behind = _around(slots)
    return f"{_quoted(before)} ~ {content} ~ {_quoted(behind)}"


def _around(slots: Slots) -> tuple[str, str]:
    """What stands before and behind the content in slots of one string."""
    before, _, behind = str(slots[0]).partition(CONTENT)
    return before, behind


def _literal(text: str) -> str:
    return f"{{{{ {_quoted(text)} }}}}" if text else ""


def _quoted(text: str) -> str:
    """A Jinja string."""
    escaped = text.replace("\\", "\\\\").replace("'", "\\'").replace("\n", "\\n")
    return f"'{escaped}'"


def _refused(what: str, name: str) -> str:
    return "{{ raise_exception(" + _quoted(f"the template {name} has no {what}") + ") }}"
