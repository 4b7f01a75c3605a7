"""Chat templates by name: what stands around each turn, for models without one and LLaMA-Factory's jobs.

`named_template` finds one. `template_jinja` writes it as a chat template, `llamafactory` encodes by it slot
by slot. Names and strings are those of LLaMA-Factory's table (data/template.py, Apache-2.0), so that its
configurations mean here what they mean there; most of them are the model makers' own.
"""

import difflib
from dataclasses import dataclass, replace
from enum import Enum

from luthier.datasets.examples import DatasetError, Issue
from luthier.errors import printable


class Named(Enum):
    """A token by the part that it plays; each tokenizer has its own, or none."""

    BOS = "bos_token"
    EOS = "eos_token"


BOS, EOS = Named.BOS, Named.EOS

# Strings, in which `{c}` stands for the content of a turn, and tokens of the model's own.
Slots = tuple[str | Named, ...]
CONTENT = "{c}"

EMPTY_THOUGHT = "<think>\n\n</think>\n\n"

# Words of the Qwen and Hermes models for the functions that an assistant may call.
TOOLS_BEFORE = (
    "# Tools\n\nYou may call one or more functions to assist with the user query.\n\nYou are provided with "
    "function signatures within <tools></tools> XML tags:\n<tools>"
)
TOOLS_BEHIND = (
    "\n</tools>\n\nFor each function call, return a json object with function name and arguments within "
    '<tool_call></tool_call> XML tags:\n<tool_call>\n{"name": <function-name>, "arguments": '
    "<args-json-object>}\n</tool_call>"
)


@dataclass(frozen=True)
class NamedTemplate:
    """What stands around each turn.

    Attributes:
        user, assistant, system: a turn of each; `assistant` without its header.
        header: between a user's turn and the answer; what a model goes on from.
        tool: a tool's answer; None where the template has no such turns.
        prefix: before all.
        default_system: where a row has none; empty for nothing.
        end_of_turn: special token that an answer ends with; None for the tokenizer's `eos_token`, or none.
        special_tokens: texts that have to be one special token each for the model to know the template.
        fuses_system: the system's text stands within the first user turn.
        is_reasoning: an answer without thoughts gets an empty thought.
        ends_with_eos: the whole conversation is followed by one `eos_token` ("efficient eos").
        has_tools: functions and calls are written as the Qwen and Hermes models do.
    """

    name: str
    user: Slots
    assistant: Slots
    header: Slots = ()
    system: Slots = (CONTENT,)
    tool: Slots | None = None
    prefix: Slots = ()
    default_system: str = ""
    end_of_turn: str | None = None
    special_tokens: tuple[str, ...] = ()
    fuses_system: bool = False
    is_reasoning: bool = False
    ends_with_eos: bool = False
    has_tools: bool = False


def named_template(name: str) -> NamedTemplate:
    """The template of that name.

    Raises:
        DatasetError: `template.unknown`; its text lists the names.
    """
    if name in NAMED:
        return NAMED[name]
    near = difflib.get_close_matches(name[:40].lower(), NAMED, n=1, cutoff=0.5)
    hint = f" (did you mean '{near[0]}'?)" if near else ""
    text = (
        f"dataset.template '{printable(name, 40)}' is not a template that there is{hint}; use "
        f"{', '.join(sorted(NAMED))}, or leave it out for the model's own"
    )
    raise DatasetError(Issue("template.unknown", text, "dataset.template"))


_IM = ("<|im_start|>", "<|im_end|>")
_TOOL_RESPONSE = ("<|im_start|>user\n<tool_response>\n{c}\n</tool_response><|im_end|>\n",)
_CHATML = NamedTemplate(
    name="chatml",
    user=("<|im_start|>user\n{c}<|im_end|>\n",),
    header=("<|im_start|>assistant\n",),
    assistant=("{c}<|im_end|>\n",),
    system=("<|im_start|>system\n{c}<|im_end|>\n",),
    tool=("<|im_start|>tool\n{c}<|im_end|>\n",),
    end_of_turn="<|im_end|>",
    special_tokens=_IM,
    has_tools=True,
)
_QWEN3 = replace(_CHATML, name="qwen3_nothink", tool=_TOOL_RESPONSE)
_PLAIN_CHATML = replace(_CHATML, tool=None, has_tools=False)
_GEMMA = NamedTemplate(
    name="gemma",
    user=("<start_of_turn>user\n{c}<end_of_turn>\n",),
    header=("<start_of_turn>model\n",),
    assistant=("{c}<end_of_turn>\n",),
    system=("{c}\n\n",),
    prefix=(BOS,),
    end_of_turn="<end_of_turn>",
    special_tokens=("<start_of_turn>", "<end_of_turn>"),
    fuses_system=True,
)
_LLAMA2 = NamedTemplate(
    name="llama2",
    user=(BOS, "[INST] {c} [/INST]"),
    assistant=(CONTENT, EOS),
    system=("<<SYS>>\n{c}\n<</SYS>>\n\n",),
    fuses_system=True,
)
_MINISTRAL = NamedTemplate(
    name="ministral",
    user=("[INST]{c}[/INST]",),
    assistant=(CONTENT, EOS),
    system=("{c}\n\n",),
    prefix=(BOS,),
    fuses_system=True,
)
_DEEPSEEK = NamedTemplate(
    name="deepseek3",
    user=("<｜User｜>{c}",),
    header=("<｜Assistant｜>",),
    assistant=(CONTENT, EOS),
    prefix=(BOS,),
    special_tokens=("<｜User｜>", "<｜Assistant｜>"),
)
_ALL = (
    _CHATML,
    _QWEN3,
    replace(_QWEN3, name="qwen3", is_reasoning=True),
    replace(
        _QWEN3,
        name="qwen",
        default_system="You are Qwen, created by Alibaba Cloud. You are a helpful assistant.",
    ),
    replace(_QWEN3, name="qwen2_vl", default_system="You are a helpful assistant."),
    replace(_PLAIN_CHATML, name="yi"),
    replace(
        _PLAIN_CHATML,
        name="smollm2",
        default_system="You are a helpful AI assistant named SmolLM, trained by Hugging Face.",
    ),
    NamedTemplate(
        name="default",
        user=("Human: {c}", EOS, "\n"),
        header=("Assistant:",),
        assistant=(CONTENT, EOS, "\n"),
        system=("System: {c}", EOS, "\n"),
    ),
    NamedTemplate(name="empty", user=(CONTENT,), assistant=(CONTENT,)),
    NamedTemplate(
        name="alpaca",
        user=("### Instruction:\n{c}\n\n",),
        header=("### Response:\n",),
        assistant=(CONTENT, EOS, "\n\n"),
        default_system=(
            "Below is an instruction that describes a task. Write a response that appropriately completes "
            "the request.\n\n"
        ),
    ),
    _LLAMA2,
    replace(
        _LLAMA2,
        name="llama2_zh",
        default_system="You are a helpful assistant. 你是一个乐于助人的助手。",
    ),
    NamedTemplate(
        name="llama3",
        user=("<|start_header_id|>user<|end_header_id|>\n\n{c}<|eot_id|>",),
        header=("<|start_header_id|>assistant<|end_header_id|>\n\n",),
        assistant=("{c}<|eot_id|>",),
        system=("<|start_header_id|>system<|end_header_id|>\n\n{c}<|eot_id|>",),
        prefix=(BOS,),
        end_of_turn="<|eot_id|>",
        special_tokens=("<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"),
    ),
    replace(_MINISTRAL, name="mistral", user=("[INST] {c}[/INST]",), assistant=(" {c}", EOS)),
    _MINISTRAL,
    replace(
        _MINISTRAL, name="mistral_small", system=("[SYSTEM_PROMPT]{c}[/SYSTEM_PROMPT]",), fuses_system=False
    ),
    _GEMMA,
    replace(_GEMMA, name="gemma2", ends_with_eos=True),
    replace(_GEMMA, name="gemma3"),
    NamedTemplate(
        name="phi",
        user=("<|user|>\n{c}<|end|>\n",),
        header=("<|assistant|>\n",),
        assistant=("{c}<|end|>\n",),
        system=("<|system|>\n{c}<|end|>\n",),
        end_of_turn="<|end|>",
        special_tokens=("<|user|>", "<|end|>", "<|assistant|>"),
    ),
    NamedTemplate(
        name="phi4",
        user=("<|im_start|>user<|im_sep|>{c}<|im_end|>",),
        header=("<|im_start|>assistant<|im_sep|>",),
        assistant=("{c}<|im_end|>",),
        system=("<|im_start|>system<|im_sep|>{c}<|im_end|>",),
        end_of_turn="<|im_end|>",
        special_tokens=("<|im_start|>", "<|im_sep|>", "<|im_end|>"),
    ),
    _DEEPSEEK,
    replace(_DEEPSEEK, name="deepseekr1", is_reasoning=True),
    replace(
        _DEEPSEEK,
        name="deepseek",
        user=("User: {c}\n\n",),
        header=("Assistant:",),
        system=("{c}\n\n",),
        special_tokens=(),
    ),
    NamedTemplate(
        name="glm4",
        user=("<|user|>\n{c}",),
        header=("<|assistant|>",),
        assistant=("\n{c}",),
        system=("<|system|>\n{c}",),
        prefix=("[gMASK]<sop>",),
        special_tokens=("[gMASK]", "<sop>", "<|user|>", "<|assistant|>"),
        ends_with_eos=True,
    ),
    NamedTemplate(
        name="zephyr",
        user=("<|user|>\n{c}", EOS),
        header=("<|assistant|>\n",),
        assistant=(CONTENT, EOS),
        system=("<|system|>\n{c}", EOS),
        default_system="You are Zephyr, a helpful assistant.",
    ),
    NamedTemplate(
        name="vicuna",
        user=("USER: {c} ",),
        header=("ASSISTANT:",),
        assistant=(CONTENT, EOS),
        default_system=(
            "A chat between a curious user and an artificial intelligence assistant. The assistant gives "
            "helpful, detailed, and polite answers to the user's questions."
        ),
    ),
    NamedTemplate(
        name="granite3",
        user=("<|start_of_role|>user<|end_of_role|>{c}<|end_of_text|>\n",),
        header=("<|start_of_role|>assistant<|end_of_role|>",),
        assistant=("{c}<|end_of_text|>\n",),
        system=("<|start_of_role|>system<|end_of_role|>{c}<|end_of_text|>\n",),
        end_of_turn="<|end_of_text|>",
        special_tokens=("<|start_of_role|>", "<|end_of_role|>", "<|end_of_text|>"),
    ),
    NamedTemplate(
        name="falcon",
        user=("User: {c}\n",),
        header=("Falcon:",),
        assistant=("{c}\n",),
        ends_with_eos=True,
    ),
    NamedTemplate(
        name="olmo",
        user=("<|user|>\n{c}",),
        header=("<|assistant|>\n",),
        assistant=(CONTENT, EOS),
        prefix=(EOS,),
    ),
)

NAMED: dict[str, NamedTemplate] = {template.name: template for template in _ALL}
