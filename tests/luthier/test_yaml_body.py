"""YAML of strangers: values as JSON has them, a place for every mistake, and no bomb that goes off."""

import time

import pytest

from luthier.yaml_body import YamlError, parse


def test_values_are_those_of_json() -> None:
    text = "a: 1e-4\nb: 2024-05-06\nc: [1, true, null, '5']\nd: 1.5\n"
    assert parse(text) == {"a": 1e-4, "b": "2024-05-06", "c": [1, True, None, "5"], "d": 1.5}
    assert parse("") is None


def test_anchors_and_merges_give_copies() -> None:
    value = parse("a: &x {p: 1, q: 1}\nb: {<<: *x, q: 2}\nc: *x\n")
    assert value == {"a": {"p": 1, "q": 1}, "b": {"p": 1, "q": 2}, "c": {"p": 1, "q": 1}}
    assert value["a"] is not value["c"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: 1\nb: 2\na: 3\n", "line 3, column 1: the name 'a' stands there twice"),
        ("a: [\n", "line 2, column 1: "),
        ("a: .nan", "line 1, column 4: the number is not finite"),
        ("a: 1e999", "line 1, column 4: the number is not finite"),
        ("a: 12345678901234567890", "line 1, column 4: the integer has more than 19 digits"),
        ("a: !!python/object:os.system x", "line 1, column 4: the tag .* is not taken"),
        ("a: !!binary aGk=", "line 1, column 4: the tag .* is not taken"),
        ("a: !!int x", "line 1, column 4: this is not what its tag"),
        ("a: *b", r"line 1, column 4: the alias \*b names nothing"),
        ("a: &b [*b]", "names nothing that stands before it"),
        ("1: 2", "line 1, column 1: a name must be text"),
        ("<<: 1", "<< merges mappings only"),
        ("--- a\n--- b\n", "line 2, column 1: there is a second document"),
        ('a: "x\0"', "control characters"),
    ],
)
def test_what_json_could_not_say_is_refused_with_its_place(text: str, message: str) -> None:
    with pytest.raises(YamlError, match=message):
        parse(text)


_LEVELS = "".join(f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]\n" for n in range(1, 12))


@pytest.mark.parametrize(
    "text",
    [f"a0: &a0 [x]\n{_LEVELS}", "[" * 500_000, "{a: " * 300_000, "- " * 300_000, "- a\n" * 120_000],
    ids=["aliases", "lists", "mappings", "dashes", "length"],
)
def test_a_bomb_is_refused_at_once(text: str) -> None:
    started = time.perf_counter()
    with pytest.raises(YamlError, match=r"deeper than 64 levels|more than 100000 values"):
        parse(text)
    assert time.perf_counter() - started < 10, "well under a second on an idle machine"


def test_half_a_surrogate_pair_is_refused() -> None:
    with pytest.raises(YamlError, match="half of a surrogate pair"):
        parse("name: \ud800")


def test_what_only_begins_like_a_number_is_text() -> None:
    assert parse("[5e-4, 5e-4x, 1e3 and more]") == [5e-4, "5e-4x", "1e3 and more"]
