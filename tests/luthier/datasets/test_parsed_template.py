"""A model's own template taken apart; the slots expected here were put together by hand."""

from typing import Any

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors

from luthier.datasets.encoding import Encoder
from luthier.datasets.examples import DatasetError, Example, Format, Message
from luthier.datasets.parsed_template import parsed_template
from luthier.datasets.prepare import build_encoder
from luthier.datasets.template_choice import disagreements, resolve_template
from luthier.datasets.tokenizer import ModelTokenizer
from luthier.spec import DatasetRequest

TURNS = (
    "{% for m in messages %}{{ '<|im_start|>' ~ m.role ~ '\\n' ~ m.content ~ '<|im_end|>\\n' }}{% endfor %}"
)
ASKS = "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
CHATML = TURNS + ASKS
# As Qwen2.5's: a system message of its own where there is none.
POLITE = (
    "{% if messages[0].role != 'system' %}{{ '<|im_start|>system\\nBe kind.<|im_end|>\\n' }}{% endif %}"
    + CHATML
)
# As Qwen3's: an empty thought before the last answer.
REASONING = TURNS.replace(
    "m.content ~",
    "('<think>\\n\\n</think>\\n\\n' if m.role == 'assistant' and loop.last else '') ~ m.content ~",
)
REASONING += ASKS
# As Llama 3.1's: a system turn always, with words of its own.
DATED = (
    "{{ bos_token }}{% set system = '' %}{% set rest = messages %}"
    "{% if messages[0].role == 'system' %}{% set system = messages[0].content %}{% set rest = messages[1:] %}"
    "{% endif %}{{ '<|im_start|>system\\nThe year is 1986.' ~ system ~ '<|im_end|>\\n' }}"
) + CHATML.replace("in messages", "in rest")
NO_SYSTEM = "{% if messages[0].role == 'system' %}{{ raise_exception('no') }}{% endif %}" + CHATML
# As some reasoning models': a thought is begun for the model, and is not there in what it has said.
BEGUN = TURNS + ASKS.replace("assistant\\n", "assistant\\n<think>\\n")
STRIPPED = CHATML.replace("m.content", "(m.content | replace('{', '') if m.role == 'user' else m.content)")


def model(template: str | None, *, has_bos: bool = False, **options: Any) -> ModelTokenizer:
    """A token a byte, and ChatML's; with `has_bos` texts begin with one."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE({letter: n for n, letter in enumerate(alphabet)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(["<bos>", "<|im_start|>", "<|im_end|>"])
    if has_bos:
        bos = ("<bos>", tokenizer.token_to_id("<bos>"))
        tokenizer.post_processor = processors.TemplateProcessing("<bos> $A", "<bos> $A $B", [bos])
    return ModelTokenizer(tokenizer, template, {"bos_token": "<bos>", "eos_token": "<|im_end|>"}, **options)


def pieces(tokenizer: ModelTokenizer, *contents: str, **rules: Any) -> list[tuple[str, bool]]:
    """The text of a conversation that starts with a user, in parts: trained on, or not."""
    asked = DatasetRequest(style="llamafactory", **rules)
    chosen = resolve_template(asked.template, tokenizer, asked.style)
    encoder: Encoder = build_encoder(tokenizer, chosen, asked, None)
    roles = ("user", "assistant") * len(contents)
    turns = tuple(Message(role, text) for role, text in zip(roles, contents, strict=False))
    example = Example(Format.CHAT, turns)
    [row] = encoder.encode([(example, encoder.render(example))])
    found: list[tuple[str, bool]] = []
    texts = [tokenizer._tokenizer.decode([token], skip_special_tokens=False) for token in row.ids]
    for text, mark in zip(texts, row.mask, strict=True):
        if found and found[-1][1] == bool(mark):
            found[-1] = (found[-1][0] + text, bool(mark))
        else:
            found.append((text, bool(mark)))
    return found


def test_turns_are_written_as_the_template_writes_them() -> None:
    asked = "<|im_start|>user\n{}<|im_end|>\n<|im_start|>assistant\n"
    assert pieces(model(CHATML), "a", "b", "c", "d") == [
        (asked.format("a"), False),
        ("b<|im_end|>\n", True),
        (asked.format("c"), False),
        ("d<|im_end|>\n", True),
    ]


def test_a_default_system_message_stands_once_and_before_all() -> None:
    assert parsed_template(model(POLITE)).default_system == "Be kind."
    first, _, second, _ = (text for text, _ in pieces(model(POLITE), "a", "b", "c", "d"))
    assert first.startswith("<|im_start|>system\nBe kind.<|im_end|>\n<|im_start|>user\na")
    assert second.startswith("<|im_start|>user\nc")


def test_what_the_tokenizer_puts_before_a_text_stands_there_once() -> None:
    tokenizer = model("{{ bos_token }}" + CHATML, has_bos=True)
    text = "".join(text for text, _ in pieces(tokenizer, "a", "b", "c", "d"))
    assert text.startswith("<bos><|im_start|>user\na")
    assert text.count("<bos>") == 1


@pytest.mark.parametrize(
    ("thoughts", "learnt"), [("learn", "<think>\n\n</think>\n\nb<|im_end|>\n"), ("give", "b<|im_end|>\n")]
)
def test_a_template_that_writes_thoughts_is_one_of_reasoning(thoughts: str, learnt: str) -> None:
    found = pieces(model(REASONING), "a", "b", thoughts=thoughts)
    assert "".join(text for text, _ in found).endswith("assistant\n<think>\n\n</think>\n\nb<|im_end|>\n")
    assert found[-1] == (learnt, True)


def test_a_model_without_a_template_gets_the_one_that_writes_nothing() -> None:
    assert pieces(model(None), "a", "bc") == [("a", False), ("bc", True)]


@pytest.mark.parametrize("template", [CHATML, POLITE, REASONING])
def test_nothing_is_said_where_the_slots_write_what_the_template_does(template: str) -> None:
    tokenizer = model(template)
    chosen = resolve_template(None, tokenizer, "llamafactory")
    assert disagreements(chosen, tokenizer) == ()
    assert chosen.replaces_own is None


def test_it_is_said_where_the_slots_write_something_else() -> None:
    tokenizer = model(DATED, has_bos=True)
    [warning] = disagreements(resolve_template(None, tokenizer, "llamafactory"), tokenizer)
    assert "does not write conversations as the template itself does" in warning


@pytest.mark.parametrize(
    ("tokenizer", "reason"),
    [
        (model(NO_SYSTEM), "it refuses a conversation of system"),
        (model(BEGUN), "an answer does not follow what stands before one"),
        (model(STRIPPED), "the content of a turn of user does not stand in it"),
        (model(CHATML, has_bos=True), "it does not begin with '<bos>'"),
        (model(CHATML, has_many_templates=True), "it is one of several"),
        (model(None, has_many_templates=True), "it is one of several"),
    ],
    ids=["no system", "begun thought", "changed content", "no bos", "several", "several without default"],
)
def test_what_cannot_be_taken_apart_is_refused_with_the_reason_and_the_way_out(
    tokenizer: ModelTokenizer, reason: str
) -> None:
    with pytest.raises(DatasetError, match=reason) as caught:
        resolve_template(None, tokenizer, "llamafactory")
    assert "Set dataset.template to the name of one" in caught.value.issue.message
    assert resolve_template(None, tokenizer).source == tokenizer.chat_template
