"""Server-sent events as bytes, wherever the network cuts them."""

import pytest

from luthier.client.streams import Decoder, Message

_TEXT = 'retry: 3000\r\n\r\n: beat\n\nid: 7\nevent: metrics\ndata: {"a":\ndata: "ü"}\n\ndata:bare\n\nid: 9\n'


@pytest.mark.parametrize("size", [1, 2, 1000])
def test_messages_do_not_depend_on_where_they_are_cut(size: int) -> None:
    decoder, raw = Decoder(), _TEXT.encode()
    chunks = [raw[start : start + size] for start in range(0, len(raw), size)]
    assert [message for chunk in chunks for message in decoder.feed(chunk)] == [
        Message("metrics", '{"a":\n"ü"}', "7"),
        Message("message", "bare", "7"),
    ]
    # What has begun and not ended is asked for again.
    assert decoder.last_id == "7"


def test_what_a_broken_connection_left_is_forgotten() -> None:
    decoder = Decoder()
    assert list(decoder.feed(b"id: 1\ndata: whole\n\nid: 2\nevent: metrics\ndata: ha")) == [
        Message("message", "whole", "1")
    ]
    decoder = Decoder(decoder.last_id)
    assert list(decoder.feed(b"data: next\n\n")) == [Message("message", "next", "1")]
