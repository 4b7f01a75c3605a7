"""What is filled in without running a template equals what the template says."""

import functools
import importlib.resources
from datetime import UTC, datetime

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, models

from luthier.datasets.examples import DatasetError, Example, Format, Message
from luthier.datasets.named_templates import NAMED
from luthier.datasets.rendering import Renderer
from luthier.datasets.shapes import Shapes
from luthier.datasets.template_jinja import jinja
from luthier.datasets.tokenizer import ModelTokenizer

SPECIAL = ["<|im_start|>", "<|im_end|>", "<|eot_id|>", "<bos>", "<eos>", "<end_of_turn>", "<|end|>"]
_FOLDER = importlib.resources.files("trl") / "chat_templates"
SOURCES = {
    path.name: path.read_text(encoding="utf-8") for path in _FOLDER.iterdir() if path.name.endswith(".jinja")
}
SOURCES |= {name: jinja(template) for name, template in NAMED.items()}
# Of models for pictures, which want parts of messages.
UNUSABLE = ("llava", "smolvlm", "idefics")

CONTENT = st.one_of(
    st.sampled_from(
        ["", " ", "hi", "  x ", "a\n", "\n\nb", "<think>\nhm\n</think>\n\nyes", "</think>", "<think>", "user",
         "<tool_response>\nx\n</tool_response>", "[INST] q [/INST]", "<|im_end|>", "<|im_", "nothink /think"]
    ),
    st.text(max_size=20),
)  # fmt: skip
TURNS = st.lists(st.tuples(CONTENT, CONTENT, st.booleans()), min_size=1, max_size=3)


def conversation(system, turns):
    messages = [Message("system", system)] if system is not None else []
    for question, answer, is_trained in turns:
        messages += [Message("user", question), Message("assistant", answer, is_trained=is_trained)]
    return Example(Format.CHAT, tuple(messages))


def build(source):
    tokenizer = Tokenizer(models.BPE())
    tokenizer.add_special_tokens(SPECIAL)
    return ModelTokenizer(tokenizer, source, {"bos_token": "<bos>", "eos_token": "<eos>"})


@functools.cache
def renderers(source):
    """One that learns, over all that it is shown, and one that runs the template for every conversation."""
    model = build(source)
    return Renderer(model), Renderer(model, learns=False)


def outcome(renderer, example):
    try:
        return renderer.render(example)
    except DatasetError as error:
        return str(error)


@pytest.mark.parametrize("name", sorted(name for name in SOURCES if not name.startswith(UNUSABLE)))
@settings(max_examples=8, deadline=None, suppress_health_check=[HealthCheck.too_slow], derandomize=True)
@given(st.lists(st.tuples(st.none() | CONTENT, TURNS), min_size=2, max_size=5))
def test_a_renderer_that_has_learnt_says_what_the_template_says(name, conversations):
    learnt, exact = renderers(SOURCES[name])

    for system, turns in conversations:
        example = conversation(system, turns)
        assert outcome(learnt, example) == outcome(exact, example)


@pytest.mark.parametrize(
    "name", ["qwen2_5.jinja", "qwen3.jinja", "llama3.jinja", "gemma3.jinja", *sorted(NAMED)]
)
def test_a_second_conversation_is_filled(name):
    source, named = SOURCES[name], {"bos_token": "<bos>", "eos_token": "<eos>"}
    renderer = Renderer(build(source))
    shapes = Shapes(source, named, datetime(2026, 1, 1, tzinfo=UTC), tuple(SPECIAL))
    first = renderer.render(conversation(None, [("one", "two", True)]))
    roles = ("user", "assistant")

    shapes.learn(roles, ["one", "two"], first.text, [turn.span for turn in first.turns])
    second = renderer.render(conversation(None, [("drei\n", "vier", True)]))

    assert shapes.fill(roles, ["drei\n", "vier"]) == (second.text, [turn.span for turn in second.turns])


@pytest.mark.parametrize(
    "body",
    [
        "{{ message.content[:3] }}",
        "{{ message.content | tojson }}",
        "{{ '%s' % message.content }}",
        "{{ '{}'.format(message.content) }}",
        "{{ message.content.split('a')[0] }}",
        "{% for letter in message.content %}{{ letter }}{% endfor %}",
        "{% if message.content in 'a b c' %}!{% endif %}{{ message.content }}",
        "{% set all %}{{ message.content }}{% endset %}{{ all | trim }}",
        "{{ [message.content, 'x'] | join('-') }}",
        "{{ {message.content: 1} }}{{ message.content }}",
        "{{ message.content * 2 }}",
    ],
)
def test_what_cannot_be_noted_is_left_to_the_template(body):
    source = (
        f"{{% for message in messages %}}<|im_start|>{body}{{{{ message.content }}}}<|im_end|>{{% endfor %}}"
    )
    learnt, exact = renderers(source)

    for contents in [("abc", "b"), ("b", "abc"), (" a", "xyz"), ("abc", "b")]:
        example = conversation(None, [(*contents, True)])
        assert outcome(learnt, example) == outcome(exact, example)
