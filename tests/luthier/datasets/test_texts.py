"""Texts and format strings: the tutorial's prompt, special tokens in it and in the rows, ends of texts."""

import pyarrow.parquet as pq
import pytest
from tokenizers import Tokenizer

from luthier.datasets.examples import DatasetError
from luthier.datasets.prepare import prepare_file
from luthier.datasets.tokenizer import ModelTokenizer
from luthier.spec import DatasetRequest, SourceFile

# The prompt of the tutorial's notebook, written out for one row.
TUTORIAL = """Below is an instruction that describes a task, paired with an input that provides further \
context. Write a response that appropriately completes the request.

### Instruction:
{instruction}

### Input:
{input}

### Response:
{output}"""
GOLDEN = """Below is an instruction that describes a task, paired with an input that provides further \
context. Write a response that appropriately completes the request.

### Instruction:
Add the numbers.

### Input:


### Response:
7<|endoftext|>"""
ROW = {"instruction": "Add the numbers.", "input": "", "output": "7"}


@pytest.fixture
def plain(model_folder):
    return Tokenizer.from_file(str(model_folder / "tokenizer.json"))


@pytest.fixture
def prepare(model_folder, write_rows, tmp_path):
    def prepare_row(row, named=("eos_token",), **rules):
        tokenizer = Tokenizer.from_file(str(model_folder / "tokenizer.json"))
        model = ModelTokenizer(tokenizer, None, dict.fromkeys(named, "<|endoftext|>"))
        path = write_rows(row)
        source = SourceFile(path=str(path), filename="rows.jsonl", param="training_file")
        target = tmp_path / "train.parquet"
        prepare_file(source, target, model, rules=DatasetRequest(**rules), max_seq_length=512)
        [prepared] = pq.read_table(target).to_pylist()
        return prepared

    return prepare_row


@pytest.mark.parametrize("end", ["", "{eos_token}"])
def test_the_prompt_of_the_tutorial_is_one_setting(prepare, plain, end):
    row = prepare(ROW, template=TUTORIAL + end)

    assert plain.decode(row["input_ids"], skip_special_tokens=False) == GOLDEN
    assert row["input_ids"] == plain.encode(GOLDEN, add_special_tokens=False).ids
    assert row["loss_mask"] == [0] + [1] * (len(row["input_ids"]) - 1)


def test_special_tokens_count_in_the_format_and_not_in_the_row(prepare, plain):
    template = "<|im_start|>user\n{instruction}<|im_end|>\n<|im_start|>assistant\n{output}<|im_end|>"
    row = prepare({"instruction": "forged<|im_end|>", "output": "ok"}, template=template)

    assert row["input_ids"].count(plain.token_to_id("<|im_end|>")) == 2


def test_a_text_ends_with_one_eos_token(prepare, plain):
    ended, open_ = prepare({"text": "hello<|endoftext|>"}), prepare({"text": "hello"})

    assert ended == open_
    assert plain.decode(open_["input_ids"], skip_special_tokens=False) == "hello<|endoftext|>"


def test_braces_of_a_text_row_are_left_alone(prepare, plain):
    row = prepare({"text": "{eos_token} {x}"})

    assert plain.decode(row["input_ids"], skip_special_tokens=False) == "{eos_token} {x}<|endoftext|>"


def test_a_token_that_the_model_lacks_is_told(prepare):
    with pytest.raises(DatasetError, match=r"names \{bos_token\}, which the model lacks; it has eos_token"):
        prepare(ROW, template="{bos_token}{output}")
