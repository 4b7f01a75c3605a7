"""Rows that are too long: what is kept, by the rule in `luthier.datasets.truncation`."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from luthier.datasets.encoding import NativeEncoder
from luthier.datasets.examples import Example, Format, Message
from luthier.datasets.template_choice import resolve_template
from luthier.datasets.tokenizer import ModelTokenizer


def make_model():
    """One token a byte; ChatML's tokens are one each."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    raw = Tokenizer(models.BPE(vocab={letter: number for number, letter in enumerate(alphabet)}, merges=[]))
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    raw.decoder = decoders.ByteLevel()
    raw.add_special_tokens(["<bos>", "<eos>", "<|im_start|>", "<|im_end|>"])
    return raw, ModelTokenizer(
        Tokenizer.from_str(raw.to_str()), None, {"bos_token": "<bos>", "eos_token": "<eos>"}
    )


RAW, MODEL = make_model()


def encode(contents, limit, template="chatml", system=None, train_on="assistant"):
    roles = ("user", "assistant") * len(contents)
    messages = [Message(role, text) for role, text in zip(roles, contents, strict=False)]
    messages = [Message("system", system)] * (system is not None) + messages
    example = Example(Format.CHAT, tuple(messages))
    encoder = NativeEncoder(MODEL, resolve_template(template, MODEL), train_on, limit)
    [row] = encoder.encode([(example, encoder.render(example))])
    ids = [token for token, mark in zip(row.ids, row.mask, strict=True) if mark]
    return row, RAW.decode(row.ids, skip_special_tokens=False), RAW.decode(ids, skip_special_tokens=False)


USER, ANSWER, END = "<|im_start|>user\n", "<|im_end|>\n<|im_start|>assistant\n", "<|im_end|>"


def test_the_prompt_loses_its_beginning_and_keeps_its_frame():
    row, text, learnt = encode(["0123456789", "yes"], limit=36, system="s")

    # 11 tokens of the system turn, 6 of the user's header, 13 of the answer's, 4 of the answer: 2 are left.
    assert text == f"<|im_start|>system\ns<|im_end|>\n{USER}89{ANSWER}yes{END}"
    assert learnt == f"yes{END}"
    assert (row.full_token_count, len(row.ids), row.lost_answer_count) == (45, 36, 0)


def test_the_end_of_the_prompt_is_what_is_kept():
    _, text, _ = encode(["0123456789", "yes"], limit=28)

    assert text == f"{USER}56789{ANSWER}yes{END}"


def test_the_oldest_exchanges_go_first_and_the_system_turn_stays():
    row, text, learnt = encode(["a" * 40, "b", "c", "d", "e", "f"], limit=66, system="s")

    assert text == f"<|im_start|>system\ns<|im_end|>\n{USER}c{ANSWER}d{END}\n{USER}e{ANSWER}f{END}\n"
    assert learnt == f"d{END}f{END}"
    assert (row.answer_count, row.lost_answer_count) == (3, 1)


def test_an_exchange_goes_also_for_one_token_too_many():
    contents = ["ab", "c", "d", "e"]
    whole, _, _ = encode(contents, limit=1000)
    limit = whole.full_token_count - len("\n") - 1

    assert encode(contents, limit)[1] == f"{USER}d{ANSWER}e{END}\n"
    assert encode(contents, limit + 1)[0].lost_answer_count == 0


def test_a_fused_system_moves_to_the_first_exchange_left():
    _, text, _ = encode(["a" * 60, "b", "c", "d"], limit=60, template="llama2", system="s")

    assert text == "<bos>[INST] <<SYS>>\ns\n<</SYS>>\n\nc [/INST]d<eos>"


def test_an_answer_that_does_not_fit_alone_is_cut_at_its_end():
    row, text, learnt = encode(["question", "0123456789" * 4], limit=20)

    assert text == f"{ANSWER}0123456"
    assert learnt == "0123456"
    assert row.lost_answer_count == 1


def test_the_header_stays_beside_the_answer_when_the_system_turn_has_to_go():
    _, text, learnt = encode(["question", "yes"], limit=18, system="a long one" * 5)

    assert text.endswith(f"{ANSWER}yes{END}")
    assert learnt == f"yes{END}"


def test_what_follows_the_last_answer_goes_before_anything_else():
    _, text, learnt = encode(["a", "b", "c", "d", "e" * 30], limit=40)

    assert text == f"{USER}c{ANSWER}d{END}\n"
    assert learnt == f"d{END}"


@settings(max_examples=150, deadline=None, derandomize=True)
@given(
    st.lists(st.text("ab é😀\n", max_size=30), min_size=2, max_size=8).filter(
        lambda texts: len(texts) % 2 == 0
    ),
    st.none() | st.text("xyz", max_size=20),
    st.integers(2, 120),
    st.sampled_from(["chatml", "llama2", "mistral", "alpaca", "qwen3", "vicuna"]),
    st.sampled_from(["assistant", "last", "all"]),
)
def test_a_row_never_exceeds_the_limit_and_counts_its_losses(contents, system, limit, template, train_on):
    row, _, learnt = encode(contents, limit, template, system, train_on)

    assert len(row.ids) == len(row.mask) <= limit
    assert sum(span.end - span.start for span in row.kept) == len(row.ids)
    assert 0 <= row.lost_answer_count <= row.answer_count
    if train_on == "last" and row.lost_answer_count == 0:
        assert contents[-1].strip("\n") in learnt


def test_a_text_is_cut_at_its_end():
    example = Example(Format.TEXT, (), text=(("0123456789", True),))
    encoder = NativeEncoder(MODEL, resolve_template(None, MODEL), "assistant", 6)

    [row] = encoder.encode([(example, encoder.render(example))])

    assert RAW.decode(row.ids) == "012345"
    assert row.lost_answer_count == 1


@pytest.mark.parametrize("limit", [1, 2])
def test_no_limit_is_too_small(limit):
    row, _, _ = encode(["question", "yes"], limit)

    assert len(row.ids) <= limit
