"""What rows of each format become."""

import pytest

from luthier.datasets.examples import DatasetError
from luthier.datasets.reading import read_examples


@pytest.fixture
def read(write_rows):
    """The one example of a row."""

    def read_row(row):
        [(_, example)] = read_examples(write_rows(row))
        return example

    return read_row


def turns(example):
    return [(message.role, message.content) for message in example.messages]


def test_chat_takes_developer_as_system_and_joins_text_parts(read):
    parts = [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]
    messages = [
        {"role": "developer", "content": "be kind"},
        {"role": "user", "content": parts},
        {"role": "assistant", "content": "c", "weight": 0},
    ]

    example = read({"messages": messages})

    assert turns(example) == [("system", "be kind"), ("user", "ab"), ("assistant", "c")]
    assert not example.messages[2].is_trained


def test_tool_calls_get_their_arguments_as_objects(read):
    call = {"id": "1", "type": "function", "function": {"name": "f", "arguments": '{"x": 1}'}}
    tool = {"type": "function", "function": {"name": "f"}}
    messages = [
        {"role": "user", "content": "x"},
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "content": "2", "tool_call_id": "1"},
        {"role": "assistant", "content": "two"},
    ]

    example = read({"messages": messages, "tools": [tool]})

    assert example.messages[1].content is None
    assert example.messages[1].tool_calls[0]["function"]["arguments"] == {"x": 1}
    assert example.messages[2].tool_call_id == "1"
    assert example.tools == (tool,)


def test_alpaca_joins_instruction_and_input_behind_its_history(read):
    row = {"system": "s", "history": [["q", "a"]], "instruction": "Sum up:", "input": "text", "output": "t"}

    assert turns(read(row)) == [
        ("system", "s"),
        ("user", "q"),
        ("assistant", "a"),
        ("user", "Sum up:\ntext"),
        ("assistant", "t"),
    ]


def test_sharegpt_knows_tools_and_a_system_of_the_row(read):
    row = {
        "system": "s",
        "tools": '[{"name": "f"}]',
        "conversations": [
            {"from": "human", "value": "x"},
            {"from": "function_call", "value": '{"name": "f", "arguments": {"x": 1}}'},
            {"from": "observation", "value": "2"},
            {"from": "gpt", "value": "two"},
        ],
    }

    example = read(row)

    assert turns(example) == [
        ("system", "s"),
        ("user", "x"),
        ("assistant", None),
        ("tool", "2"),
        ("assistant", "two"),
    ]
    assert example.messages[2].tool_calls[0]["function"] == {"name": "f", "arguments": {"x": 1}}
    assert example.tools == ({"name": "f"},)


def test_reading_stops_at_the_first_bad_row(write_rows):
    path = write_rows({"prompt": "a", "completion": "b"}, {"prompt": "a"}, b"broken")

    with pytest.raises(DatasetError, match=r"^Line 2: completion is missing"):
        list(read_examples(path))
