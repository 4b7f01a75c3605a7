"""Rows in the style of LLaMA-Factory, against values of its own tests and ids put together here."""

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from luthier.datasets.examples import DatasetError, Example, Format, Message
from luthier.datasets.llamafactory import SlotEncoder, shared_room
from luthier.datasets.named_templates import NAMED
from luthier.datasets.tokenizer import ModelTokenizer
from luthier.spec import END_MARK

SPECIAL = [
    "<bos>", "<eos>", "<|im_start|>", "<|im_end|>", "<|start_header_id|>", "<|end_header_id|>",
    "<|eot_id|>", "<|user|>", "<|assistant|>", "[gMASK]", "<sop>",
]  # fmt: skip


@pytest.fixture(scope="module")
def raw():
    """One token a byte, so that lengths can be counted by hand."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(
        models.BPE(vocab={letter: number for number, letter in enumerate(alphabet)}, merges=[])
    )
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(SPECIAL)
    return tokenizer


def encode(
    raw,
    template,
    contents,
    train_on="assistant",
    limit=None,
    system=None,
    weights=None,
    thoughts="learn",
):
    roles = ("user", "assistant") * len(contents)
    weights = weights or [True] * len(contents)
    messages = [
        Message(role, text, is_trained=weight)
        for role, text, weight in zip(roles, contents, weights, strict=False)
    ]
    messages = [Message("system", system)] * (system is not None) + messages
    model = ModelTokenizer(
        Tokenizer.from_str(raw.to_str()), None, {"bos_token": "<bos>", "eos_token": "<eos>"}
    )
    encoder = SlotEncoder(model, NAMED[template], train_on, limit, thoughts)
    example = Example(Format.CHAT, tuple(messages))
    [row] = encoder.encode([(example, encoder.render(example))])
    return row


def expected(raw, *slots):
    """Ids and marks of (text, mark) encoded one by one; the first token is learnt by nobody."""
    ids, mask = [], []
    for text, is_learnt in slots:
        tokens = raw.encode(text, add_special_tokens=False).ids
        ids += tokens
        mask += [int(is_learnt)] * len(tokens)
    return ids, bytes([0, *mask[1:]])


@pytest.mark.parametrize(
    ("lengths", "kept"),
    [
        ((3000, 2000, 1000), (600, 400)),
        ((2000, 3000, 1000), (400, 600)),
        ((1000, 100, 1000), (900, 100)),
        ((100, 1000, 1000), (100, 900)),
        ((100, 500, 1000), (100, 500)),
        ((500, 100, 1000), (500, 100)),
        ((10, 10, 1000), (10, 10)),
    ],
)
def test_prompt_and_answer_share_the_room_as_there(lengths, kept):
    assert shared_room(*lengths) == kept


def llama3(turns):
    def header(role):
        return f"<|start_header_id|>{role}<|end_header_id|>\n\n"

    return [
        (
            ("<bos>" if number == 0 else "") + f"{header('user')}{ask}<|eot_id|>{header('assistant')}",
            f"{tell}<|eot_id|>",
        )
        for number, (ask, tell) in enumerate(turns)
    ]


def test_every_answer_is_learnt_and_no_prompt(raw):
    (first, one), (second, two) = llama3([("a", "b"), ("c", "d")])
    row = encode(raw, "llama3", ["a", "b", "c", "d"])

    assert (row.ids, row.mask) == expected(raw, (first, 0), (one, 1), (second, 0), (two, 1))


def test_with_the_history_masked_the_last_answer_is_learnt(raw):
    (first, one), (second, two) = llama3([("a", "b"), ("c", "d")])
    row = encode(raw, "llama3", ["a", "b", "c", "d"], train_on="last")

    assert (row.ids, row.mask) == expected(raw, (first, 0), (one, 0), (second, 0), (two, 1))


def test_with_prompts_trained_on_all_is_learnt(raw):
    row = encode(raw, "llama3", ["a", "b", "c", "d"], train_on="all")

    assert row.mask == b"\0" + b"\1" * (len(row.ids) - 1)


def test_qwen_has_its_system_turn_and_the_line_end_in_the_loss(raw):
    prompt = (
        "<|im_start|>system\nYou are Qwen, created by Alibaba Cloud. You are a helpful assistant."
        "<|im_end|>\n",
        "<|im_start|>user\n{u}<|im_end|>\n<|im_start|>assistant\n",
    )
    row = encode(raw, "qwen", ["{u}", "{a}"])

    assert (row.ids, row.mask) == expected(raw, (prompt[0], 0), (prompt[1], 0), ("{a}<|im_end|>\n", 1))


def test_an_empty_thought_is_learnt_in_every_answer(raw):
    ask = "<|im_start|>user\n{}<|im_end|>\n<|im_start|>assistant\n"
    thought = "<think>\n\n</think>\n\n"
    row = encode(raw, "qwen3", ["a", "b", "c", "<think>\nx\n</think>\n\nd"])

    assert (row.ids, row.mask) == expected(
        raw,
        (ask.format("a"), 0),
        (f"{thought}b<|im_end|>\n", 1),
        (ask.format("c"), 0),
        ("<think>\nx\n</think>\n\nd<|im_end|>\n", 1),
    )


def test_with_the_history_masked_old_thoughts_are_left_out(raw):
    row = encode(raw, "qwen3", ["a", "<think>\nx\n</think>\n\nb", "c", "d"], train_on="last")

    ask = "<|im_start|>user\n{}<|im_end|>\n<|im_start|>assistant\n"
    thought = "<think>\n\n</think>\n\n"
    slots = [(ask.format("a"), 0), ("b<|im_end|>\n", 0), (ask.format("c"), 0), (f"{thought}d<|im_end|>\n", 1)]
    assert (row.ids, row.mask) == expected(raw, *slots)


def test_a_fused_system_stands_in_the_first_prompt(raw):
    row = encode(raw, "llama2", ["a", "b", "c", "d"], system="s")

    first = "<bos>[INST] <<SYS>>\ns\n<</SYS>>\n\na [/INST]"
    slots = [(first, 0), ("b<eos>", 1), ("<bos>[INST] c [/INST]", 0), ("d<eos>", 1)]
    assert (row.ids, row.mask) == expected(raw, *slots)


def test_one_eos_ends_a_row_whose_answers_have_none(raw):
    row = encode(raw, "glm4", ["a", "b", "c", "d"])

    prompts = "[gMASK]<sop><|user|>\na<|assistant|>", "<|user|>\nc<|assistant|>"
    slots = [(prompts[0], 0), ("\nb", 1), (prompts[1], 0), ("\nd", 1), ("<eos>", 1)]
    ids, mask = expected(raw, *slots)
    behind_b = len(expected(raw, *slots[:2])[0])
    assert (row.ids, row.mask) == (ids, mask[:behind_b] + bytes([END_MARK]) + mask[behind_b + 1 :])


def test_with_the_history_masked_ends_are_learnt_behind_all_answers_but_the_one_before_the_last(raw):
    row = encode(raw, "glm4", ["a", "b", "c", "d", "e", "f"], train_on="last")

    slots = [("[gMASK]<sop><|user|>\na<|assistant|>", 0), ("\nb", 0), ("<|user|>\nc<|assistant|>", 0)]
    slots += [("\nd", 0), ("<|user|>\ne<|assistant|>", 0), ("\nf", 1), ("<eos>", 1)]
    ids, mask = expected(raw, *slots)
    behind_b = len(expected(raw, *slots[:2])[0])
    # That system takes the last turn up first, and puts the end before each that it takes up later.
    assert (row.ids, row.mask) == (ids, mask[:behind_b] + bytes([END_MARK]) + mask[behind_b + 1 :])


@pytest.mark.parametrize(
    ("thoughts", "first", "second"),
    [
        ("learn", [("<think>\nx\n</think>\n\nb", 1)], [("<think>\n\n</think>\n\n", 1), ("d", 1)]),
        ("give", [("<think>\nx\n</think>\n\nb", 1)], [("<think>\n\n</think>\n\n", 0), ("d", 1)]),
        ("remove", [("<think>\n\n</think>\n\n", 0), ("b", 1)], [("<think>\n\n</think>\n\n", 0), ("d", 1)]),
    ],
)
def test_thoughts_are_learnt_given_or_removed(raw, thoughts, first, second):
    row = encode(raw, "qwen3", ["a", "<think>\nx\n</think>\n\nb", "c", "d"], thoughts=thoughts)

    asked = "<|im_start|>user\n{}<|im_end|>\n<|im_start|>assistant\n"
    ends = [("<|im_end|>\n", 1)]
    slots = [(asked.format("a"), 0), *first, *ends, (asked.format("c"), 0), *second, *ends]
    assert (row.ids, row.mask) == expected(raw, *slots)


@pytest.mark.parametrize("thoughts", ["give", "remove"])
def test_a_masked_history_has_no_empty_thoughts(raw, thoughts):
    row = encode(raw, "qwen3", ["a", "b", "c", "d"], train_on="last", thoughts=thoughts)

    asked = "<|im_start|>user\n{}<|im_end|>\n<|im_start|>assistant\n"
    slots = [(asked.format("a"), 0), ("b<|im_end|>\n", 0), (asked.format("c"), 0)]
    assert (row.ids, row.mask) == expected(raw, *slots, ("<think>\n\n</think>\n\n", 0), ("d<|im_end|>\n", 1))


def test_later_turns_get_the_room_that_is_left(raw):
    # "empty": contents as they are, so lengths are those of the texts.
    row = encode(raw, "empty", ["a" * 10, "b" * 10, "c" * 10, "d" * 10, "e" * 5, "f" * 5], limit=30)

    text = raw.decode(row.ids)
    # 20 of 30 go to the first pair; of the 10 left, each of the second has a half; then nothing is left.
    assert text == "a" * 10 + "b" * 10 + "c" * 5 + "d" * 5
    assert (row.full_token_count, row.answer_count, row.lost_answer_count) == (50, 3, 2)


def test_with_the_history_masked_the_last_turn_takes_its_room_first(raw):
    row = encode(raw, "empty", ["a" * 10, "b" * 10, "c" * 10, "d" * 10], train_on="last", limit=30)

    assert raw.decode(row.ids) == "a" * 5 + "b" * 5 + "c" * 10 + "d" * 10
    assert row.mask == b"\0" * 20 + b"\1" * 10
    assert row.lost_answer_count == 0


def test_turns_of_weight_zero_are_not_learnt(raw):
    row = encode(raw, "chatml", ["a", "b", "c", "d"], weights=[True, False, True, True])

    assert row.mask.count(1) == len("d<|im_end|>\n") - len("<|im_end|>") + 1


def test_special_tokens_in_messages_are_text(raw):
    row = encode(raw, "chatml", ["<|im_end|>", "b"])

    assert row.ids.count(raw.token_to_id("<|im_end|>")) == 2


@pytest.mark.parametrize(
    ("template", "contents", "says"),
    [("qwen", ["a", "b", "c"], "The last turn has no answer"), ("qwen", ["a"], "has no answer")],
)
def test_turns_that_do_not_alternate_are_refused(raw, template, contents, says):
    with pytest.raises(DatasetError, match=says):
        encode(raw, template, contents)


def test_prompts_cannot_be_trained_on_where_that_system_cannot(raw):
    with pytest.raises(DatasetError, match="glm4 cannot train on prompts"):
        encode(raw, "glm4", ["a", "b"], train_on="all")


def test_functions_are_listed_in_the_system_turn_as_qwen_has_them(raw):
    call = {"type": "function", "function": {"name": "look", "arguments": {"q": "x"}}}
    messages = (
        Message("user", "a"),
        Message("assistant", None, (call,)),
        Message("tool", "1"),
        Message("assistant", "b"),
    )
    model = ModelTokenizer(Tokenizer.from_str(raw.to_str()), None, {"eos_token": "<eos>"})
    encoder = SlotEncoder(model, NAMED["qwen3_nothink"], "assistant", None)
    example = Example(Format.CHAT, messages, ({"name": "look"},))

    [row] = encoder.encode([(example, encoder.render(example))])

    assert row.text.startswith("<|im_start|>system\n\n\n# Tools\n\nYou may call one or more functions")
    assert '<tools>\n{"name": "look"}\n</tools>' in row.text
    assert '<tool_call>\n{"name": "look", "arguments": {"q": "x"}}\n</tool_call><|im_end|>\n' in row.text
    assert (
        "<|im_start|>user\n<tool_response>\n1\n</tool_response><|im_end|>\n<|im_start|>assistant\n"
        in row.text
    )
