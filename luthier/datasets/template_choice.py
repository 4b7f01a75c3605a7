"""Which template renders the rows: the model's own, a named one, or a format string; and whether it fits.

`resolve_template` chooses by `dataset.template`; `disagreements` says where the choice and the model differ.
"""

from dataclasses import dataclass
from datetime import datetime
from typing import Literal

from luthier.datasets.examples import DatasetError
from luthier.datasets.format_strings import is_format_string
from luthier.datasets.named_templates import NamedTemplate, named_template
from luthier.datasets.parsed_template import differences, parsed_template
from luthier.datasets.template_jinja import jinja
from luthier.datasets.templates import ChatTemplate
from luthier.datasets.tokenizer import ModelTokenizer

Style = Literal["luthier", "llamafactory"]

_PROBE = "probe"


@dataclass(frozen=True)
class ChosenTemplate:
    """What renders rows.

    Attributes:
        source: Jinja; None where the model has no template, or for a format string.
        named: the entry of the table; None for the model's own and for a format string.
        is_format_string: rows are texts already.
        is_parsed: `named` is the model's own template, taken apart.
    """

    source: str | None
    named: NamedTemplate | None = None
    is_format_string: bool = False
    is_parsed: bool = False

    @property
    def replaces_own(self) -> str | None:
        """The Jinja that the trained model has to carry; None where it keeps its own."""
        return self.source if self.named is not None and not self.is_parsed else None


def resolve_template(
    template: str | None, tokenizer: ModelTokenizer, style: Style = "luthier"
) -> ChosenTemplate:
    """The template that `dataset.template` asks for.

    Raises:
        DatasetError: `template.unknown`: the table has no such name; `template.unreadable`: the model's own
            cannot be taken apart, which style `llamafactory` does.
    """
    if template is None and style == "llamafactory":
        return _as_llamafactory_reads(tokenizer)
    if template is None:
        return ChosenTemplate(tokenizer.chat_template)
    if is_format_string(template):
        return ChosenTemplate(None, is_format_string=True)
    named = named_template(template)
    return ChosenTemplate(jinja(named), named)


def _as_llamafactory_reads(tokenizer: ModelTokenizer) -> ChosenTemplate:
    """The slots of the model's own template; of one that is called `empty` where it has none."""
    if tokenizer.chat_template is None and not tokenizer.has_many_templates:
        return resolve_template("empty", tokenizer)
    return ChosenTemplate(tokenizer.chat_template, parsed_template(tokenizer), is_parsed=True)


def disagreements(chosen: ChosenTemplate, tokenizer: ModelTokenizer) -> tuple[str, ...]:
    """Sentences on where a named template, or the model's own taken apart, and the model differ."""
    named = chosen.named
    if named is None:
        return ()
    if chosen.is_parsed:
        return differences(named, tokenizer)
    found = []
    if unknown := [token for token in named.special_tokens if token not in tokenizer.special_tokens]:
        found.append(
            f"the model has no special token {', '.join(unknown)}, which the template {named.name} writes: "
            "it will read them as plain text"
        )
    eos = tokenizer.named_tokens.get("eos_token")
    end, own = named.end_of_turn or eos, _own_end(tokenizer) or eos
    if end is not None and own is not None and end != own:
        found.append(
            f"the template {named.name} ends a turn with {end}, but the model ends one with {own}: it may "
            "not stop where it should"
        )
    return tuple(found)


def _own_end(tokenizer: ModelTokenizer) -> str | None:
    """The first special token behind an answer in the model's own template."""
    if tokenizer.chat_template is None:
        return None
    template = ChatTemplate(tokenizer.chat_template, tokenizer.named_tokens, datetime.now)
    try:
        text = template.render([{"role": "user", "content": "a"}, {"role": "assistant", "content": _PROBE}])
    except DatasetError:
        return None
    _, _, behind = text.rpartition(_PROBE)
    places = {behind.find(token): token for token in tokenizer.special_tokens if token in behind}
    return places[min(places)] if places else None
