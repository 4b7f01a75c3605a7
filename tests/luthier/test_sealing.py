"""Secrets at rest: what is sealed opens with the same key for the same thing, and never otherwise."""

import pytest

from luthier.sealing import SealError, seal, unseal

KEY = b"0" * 64


def test_what_is_sealed_opens_again_and_does_not_show() -> None:
    sealed = seal("hf_väry_secret", KEY, purpose="secret/s1")
    assert "secret" not in sealed
    assert unseal(sealed, KEY, purpose="secret/s1") == "hf_väry_secret"


def test_the_same_text_is_sealed_anew_each_time() -> None:
    assert seal("a", KEY, purpose="secret/s1") != seal("a", KEY, purpose="secret/s1")


@pytest.mark.parametrize(
    ("key", "purpose"), [(b"1" * 64, "secret/s1"), (KEY, "secret/s2")], ids=["another key", "another thing"]
)
def test_it_opens_for_nothing_else(key: bytes, purpose: str) -> None:
    with pytest.raises(SealError, match="sealed under another key"):
        unseal(seal("a", KEY, purpose="secret/s1"), key, purpose=purpose)


@pytest.mark.parametrize("text", ["", "v1.", "v1.&&&&", "v2.AAAA", "v1.AAAA"])
def test_what_was_never_sealed_is_refused(text: str) -> None:
    with pytest.raises(SealError):
        unseal(text, KEY, purpose="secret/s1")


def test_one_changed_character_is_noticed() -> None:
    sealed = seal("a secret", KEY, purpose="secret/s1")
    changed = sealed[:20] + ("A" if sealed[20] != "A" else "B") + sealed[21:]
    with pytest.raises(SealError):
        unseal(changed, KEY, purpose="secret/s1")
