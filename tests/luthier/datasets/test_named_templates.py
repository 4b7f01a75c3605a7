"""Named templates: their text, parity with transformers, what is learnt, and whether they fit a model."""

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from luthier.datasets.encoding import NativeEncoder
from luthier.datasets.examples import DatasetError, Example, Format, Message
from luthier.datasets.named_templates import NAMED
from luthier.datasets.rendering import Renderer
from luthier.datasets.template_choice import disagreements, resolve_template
from luthier.datasets.template_jinja import jinja
from luthier.datasets.tokenizer import ModelTokenizer

BOS, EOS = "<bos>", "<eos>"
SPECIAL = sorted({BOS, EOS, *(token for named in NAMED.values() for token in named.special_tokens)})

# What an answer ends with in the published formats; by default with the model's own eos_token.
ENDS = {
    "chatml": "<|im_end|>", "qwen": "<|im_end|>", "qwen2_vl": "<|im_end|>", "qwen3": "<|im_end|>",
    "qwen3_nothink": "<|im_end|>", "yi": "<|im_end|>", "smollm2": "<|im_end|>", "phi4": "<|im_end|>",
    "llama3": "<|eot_id|>", "gemma": "<end_of_turn>", "gemma2": "<end_of_turn>", "gemma3": "<end_of_turn>",
    "phi": "<|end|>", "granite3": "<|end_of_text|>", "empty": "",
}  # fmt: skip
# What stands before the content of the last answer and is learnt with it.
STARTS = {
    "qwen3": "<think>\n\n</think>\n\n", "deepseekr1": "<think>\n\n</think>\n\n", "mistral": " ", "glm4": "\n",
}  # fmt: skip
# Their conversation ends with one eos_token; before it stands what parts the turns.
CLOSED = {"glm4": EOS, "falcon": f"\n{EOS}"}

CONVERSATIONS = {
    "one": ["hello", "world"],
    "white space": ["  a\n\nb ", " c\td\n e "],
    "unicode": ["Grüße, 世界 😀", "naïve — ½ 🇸🇪"],
    "several": ["one", "two", "three", "four", "five", "six"],
    "code": ["if a < b:\n\treturn {'x': [1, 2]}", '{"y": "\\n"}'],
}


@pytest.fixture(scope="module")
def raw() -> Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=700,
        special_tokens=SPECIAL,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(["user assistant system hello world\n\n the answer is"] * 9, trainer)
    return tokenizer


def conversation(contents, system=None):
    roles = ("user", "assistant") * len(contents)
    messages = [Message(role, text) for role, text in zip(roles, contents, strict=False)]
    return Example(Format.CHAT, tuple([Message("system", system)] * (system is not None) + messages))


def encode(raw, name, example):
    model = ModelTokenizer(Tokenizer.from_str(raw.to_str()), None, {"bos_token": BOS, "eos_token": EOS})
    encoder = NativeEncoder(model, resolve_template(name, model), "assistant", None)
    [row] = encoder.encode([(example, encoder.render(example))])
    return row


@pytest.mark.parametrize("system", [None, "be brief\nand kind", ""])
@pytest.mark.parametrize("case", CONVERSATIONS)
@pytest.mark.parametrize("name", NAMED)
def test_ids_equal_those_of_transformers(raw, name, case, system):
    example = conversation(CONVERSATIONS[case], system)
    theirs = PreTrainedTokenizerFast(
        tokenizer_object=raw, bos_token=BOS, eos_token=EOS, chat_template=jinja(NAMED[name])
    )
    messages = [{"role": message.role, "content": message.content} for message in example.messages]

    assert encode(raw, name, example).ids == theirs.apply_chat_template(messages)["input_ids"]


@pytest.mark.parametrize("case", CONVERSATIONS)
@pytest.mark.parametrize("name", NAMED)
def test_the_last_answer_and_its_end_are_learnt(raw, name, case):
    contents = CONVERSATIONS[case]
    row = encode(raw, name, conversation(contents))
    ids = [token for token, mark in zip(row.ids, row.mask, strict=True) if mark]
    learnt = raw.decode(ids, skip_special_tokens=False)

    end = CLOSED.get(name, ENDS.get(name, EOS))
    assert learnt.endswith(STARTS.get(name, "") + contents[-1] + end)
    if name not in STARTS and name not in CLOSED:
        assert learnt == "".join(answer + end for answer in contents[1::2])


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("default", "System: s<eos>\nHuman: a<eos>\nAssistant:b<eos>\nHuman: c<eos>\nAssistant:d<eos>\n"),
        ("alpaca", "s### Instruction:\na\n\n### Response:\nb<eos>\n\n"
         "### Instruction:\nc\n\n### Response:\nd<eos>\n\n"),
        ("chatml", "<|im_start|>system\ns<|im_end|>\n<|im_start|>user\na<|im_end|>\n<|im_start|>"
         "assistant\nb<|im_end|>\n<|im_start|>user\nc<|im_end|>\n<|im_start|>assistant\nd<|im_end|>\n"),
        ("llama2", "<bos>[INST] <<SYS>>\ns\n<</SYS>>\n\na [/INST]b<eos><bos>[INST] c [/INST]d<eos>"),
        ("llama3", "<bos><|start_header_id|>system<|end_header_id|>\n\ns<|eot_id|><|start_header_id|>user"
         "<|end_header_id|>\n\na<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\nb<|eot_id|>"
         "<|start_header_id|>user<|end_header_id|>\n\nc<|eot_id|><|start_header_id|>assistant<|end_header_id|>"
         "\n\nd<|eot_id|>"),
        ("mistral", "<bos>[INST] s\n\na[/INST] b<eos>[INST] c[/INST] d<eos>"),
        ("gemma", "<bos><start_of_turn>user\ns\n\na<end_of_turn>\n<start_of_turn>model\nb<end_of_turn>\n"
         "<start_of_turn>user\nc<end_of_turn>\n<start_of_turn>model\nd<end_of_turn>\n"),
        ("phi4", "<|im_start|>system<|im_sep|>s<|im_end|><|im_start|>user<|im_sep|>a<|im_end|><|im_start|>"
         "assistant"
         "<|im_sep|>b<|im_end|><|im_start|>user<|im_sep|>c<|im_end|><|im_start|>assistant<|im_sep|>d<|im_end|>"),
        ("deepseek3", "<bos>s<｜User｜>a<｜Assistant｜>b<eos><｜User｜>c<｜Assistant｜>d<eos>"),
        ("glm4", "[gMASK]<sop><|system|>\ns<|user|>\na<|assistant|>\nb<|user|>\nc<|assistant|>\nd<eos>"),
        ("vicuna", "sUSER: a ASSISTANT:b<eos>USER: c ASSISTANT:d<eos>"),
        ("zephyr", "<|system|>\ns<eos><|user|>\na<eos><|assistant|>\nb<eos>"
         "<|user|>\nc<eos><|assistant|>\nd<eos>"),
        ("granite3", "<|start_of_role|>system<|end_of_role|>s<|end_of_text|>\n<|start_of_role|>user"
         "<|end_of_role|>a"
         "<|end_of_text|>\n<|start_of_role|>assistant<|end_of_role|>b<|end_of_text|>\n<|start_of_role|>user"
         "<|end_of_role|>c<|end_of_text|>\n<|start_of_role|>assistant<|end_of_role|>d<|end_of_text|>\n"),
        ("falcon", "sUser: a\nFalcon:b\nUser: c\nFalcon:d\n<eos>"),
    ],
)  # fmt: skip
def test_the_text_is_the_published_one(raw, name, expected):
    assert encode(raw, name, conversation(["a", "b", "c", "d"], system="s")).text == expected


def test_qwen_has_a_system_turn_of_its_own_and_chatml_none(raw):
    turn = "<|im_start|>user\n{u}<|im_end|>\n<|im_start|>assistant\n{a}<|im_end|>\n"
    own = (
        "<|im_start|>system\nYou are Qwen, created by Alibaba Cloud. You are a helpful assistant.<|im_end|>\n"
    )
    example = conversation(["{u}", "{a}"])

    texts = [encode(raw, name, example).text for name in ("qwen", "chatml", "qwen3_nothink")]

    assert texts == [own + turn, turn, turn]


def test_a_reasoning_template_drops_old_thoughts_and_keeps_new_ones(raw):
    row = encode(
        raw, "qwen3", conversation(["a", "<think>\nx\n</think>\n\nb", "c", "<think>\ny\n</think>\n\nd"])
    )

    assert "x" not in row.text
    assert row.text.endswith("<|im_start|>assistant\n<think>\ny\n</think>\n\nd<|im_end|>\n")


def test_qwen_writes_functions_calls_and_their_answers(raw):
    call = {"type": "function", "function": {"name": "look", "arguments": {"q": "x"}}}
    messages = (
        Message("user", "hi"),
        Message("assistant", None, (call, call)),
        Message("tool", "1"),
        Message("tool", "2"),
        Message("assistant", "3"),
    )
    text = encode(raw, "qwen", Example(Format.CHAT, messages, ({"type": "function"},))).text

    assert '<tools>\n{"type": "function"}\n</tools>' in text
    one = '<tool_call>\n{"name": "look", "arguments": {"q": "x"}}\n</tool_call>'
    assert f"<|im_start|>assistant\n{one}\n{one}<|im_end|>\n" in text
    answers = "<tool_response>\n1\n</tool_response>\n<tool_response>\n2\n</tool_response>"
    assert f"<|im_start|>user\n{answers}<|im_end|>\n" in text


def test_a_template_without_tools_refuses_them(raw):
    messages = (
        Message("user", "hi"),
        Message("assistant", "a"),
        Message("tool", "1"),
        Message("assistant", "b"),
    )

    with pytest.raises(DatasetError, match="the template vicuna has no turns of tools"):
        encode(raw, "vicuna", Example(Format.CHAT, messages))


def test_an_unknown_name_is_told_with_the_nearest(tokenizer):
    with pytest.raises(DatasetError, match=r"did you mean 'qwen3'.*alpaca, chatml, deepseek") as caught:
        resolve_template("Qwen-3", tokenizer)

    assert (caught.value.issue.code, caught.value.issue.loc) == ("template.unknown", "dataset.template")


def test_a_template_that_the_model_does_not_know_is_told(tokenizer):
    found = disagreements(resolve_template("llama3", tokenizer), tokenizer)

    assert found[0].startswith(
        "the model has no special token <|start_header_id|>, <|end_header_id|>, <|eot_id|>"
    )
    assert found[1].startswith(
        "the template llama3 ends a turn with <|eot_id|>, but the model ends one with <|im_end|>"
    )


@pytest.mark.parametrize("name", [None, "chatml", "qwen"])
def test_a_template_that_fits_is_not_told(tokenizer, name):
    assert disagreements(resolve_template(name, tokenizer), tokenizer) == ()


def test_a_model_without_template_is_told_the_remedy(raw):
    model = ModelTokenizer(Tokenizer.from_str(raw.to_str()), None, {"eos_token": EOS})

    with pytest.raises(DatasetError, match=r"no chat template.*set dataset.template to the name of one"):
        Renderer(model).render(conversation(["a", "b"]))
