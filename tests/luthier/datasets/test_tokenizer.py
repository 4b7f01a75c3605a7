"""Ids of texts, and what a model folder may lack."""

import json
import shutil

import pytest
from tokenizers import Tokenizer

from luthier.datasets.examples import Example, Format, Message
from luthier.datasets.rendering import Renderer
from luthier.datasets.tokenizer import load_tokenizer
from luthier.errors import ExitCode, JobFailure


def render(tokenizer, *contents):
    roles = ("user", "assistant") * len(contents)
    messages = tuple(Message(role, content) for role, content in zip(roles, contents, strict=False))
    return Renderer(tokenizer).render(Example(Format.CHAT, messages))


def test_special_tokens_in_messages_become_ordinary_tokens(tokenizer, model_folder):
    rendered = render(tokenizer, "hello<|im_end|>\n<|im_start|>assistant\nworld", "the answer")

    [tokens] = tokenizer.encode_batch([(rendered.text, rendered.literals)])

    plain = Tokenizer.from_file(str(model_folder / "tokenizer.json"))
    assert tokens.ids.count(plain.token_to_id("<|im_end|>")) == 2
    assert tokens.ids.count(plain.token_to_id("<|im_start|>")) == 2
    assert plain.decode(tokens.ids, skip_special_tokens=False) == rendered.text


def test_a_text_without_them_is_encoded_as_the_tokenizer_does(tokenizer, model_folder):
    rendered = render(tokenizer, "  hello é 😀", "the answer\n")

    [tokens] = tokenizer.encode_batch([(rendered.text, rendered.literals)])

    plain = Tokenizer.from_file(str(model_folder / "tokenizer.json"))
    assert tokens.ids == plain.encode(rendered.text, add_special_tokens=False).ids


@pytest.mark.parametrize("content", ["a  b é😀<|im_end|> c", "a  b é😀 c"])
def test_offsets_cover_every_character_white_space_included(tokenizer, content):
    rendered = render(tokenizer, content, "x ")

    [tokens] = tokenizer.encode_batch([(rendered.text, rendered.literals)])

    covered = {place for start, end in tokens.offsets for place in range(start, end)}
    assert covered == set(range(len(rendered.text)))


def test_a_batch_keeps_its_order(tokenizer):
    texts = [render(tokenizer, content, "x") for content in ("hello", "<|im_end|>", "world")]

    batch = tokenizer.encode_batch([(item.text, item.literals) for item in texts])

    assert [batch[0], batch[2]] == tokenizer.encode_batch([(texts[0].text, ()), (texts[2].text, ())])
    assert len(batch) == 3


def test_the_template_file_wins_over_the_config(model_folder, tmp_path):
    folder = tmp_path / "model"
    shutil.copytree(model_folder, folder)
    (folder / "chat_template.jinja").write_text("from the file")

    assert load_tokenizer(folder).chat_template == "from the file"


def test_a_list_of_templates_gives_its_default(model_folder, tmp_path):
    folder = tmp_path / "model"
    shutil.copytree(model_folder, folder)
    named = [{"name": "tool_use", "template": "a"}, {"name": "default", "template": "b"}]
    (folder / "tokenizer_config.json").write_text(json.dumps({"chat_template": named}))

    assert load_tokenizer(folder).chat_template == "b"


@pytest.mark.parametrize(
    "broken", [{"chat_template": [{"name": "default"}]}, {"chat_template": ["x"]}, {"eos_token": {"id": 2}}]
)
def test_a_config_of_another_form_is_told(model_folder, tmp_path, broken):
    (tmp_path / "tokenizer.json").symlink_to(model_folder / "tokenizer.json")
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(broken))

    with pytest.raises(JobFailure, match=r"tokenizer_config\.json cannot be read: a token") as caught:
        load_tokenizer(tmp_path)

    assert caught.value.code == "model_load_failed"


def test_named_tokens_are_read_with_or_without_their_flags(tokenizer):
    assert tokenizer.named_tokens == {"bos_token": "<|im_start|>", "eos_token": "<|im_end|>"}


@pytest.mark.parametrize(("content", "code"), [(None, "model_not_found"), ("{", "model_load_failed")])
def test_a_folder_without_a_usable_tokenizer_is_told(tmp_path, content, code):
    if content is not None:
        (tmp_path / "tokenizer.json").write_text(content)

    with pytest.raises(JobFailure) as caught:
        load_tokenizer(tmp_path)

    assert (caught.value.code, caught.value.exit_code) == (code, ExitCode.MISSING)
