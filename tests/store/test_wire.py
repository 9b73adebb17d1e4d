"""Framing of fill.sock: any division of the bytes gives the same messages; garbage is refused."""

import json
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from headstart.store.wire import MAX_MESSAGE, Decoder, Message, WireError, encode

MESSAGES = st.lists(
    st.dictionaries(
        st.text(max_size=8),
        st.none()
        | st.booleans()
        | st.integers()
        | st.text(max_size=20)
        | st.lists(st.integers(), max_size=4),
        max_size=4,
    ),
    max_size=6,
)


def framed(payload: bytes) -> bytes:
    return struct.pack(">I", len(payload)) + payload


@given(MESSAGES)
def test_messages_arrive_whole(messages: list[Message]) -> None:
    assert Decoder().feed(b"".join(map(encode, messages))) == messages


@given(MESSAGES)
def test_messages_arrive_byte_by_byte(messages: list[Message]) -> None:
    decoder = Decoder()
    found: list[Message] = []
    for byte in b"".join(map(encode, messages)):
        found += decoder.feed(bytes([byte]))
    assert found == messages


@given(MESSAGES, st.data())
def test_messages_arrive_however_the_bytes_are_divided(
    messages: list[Message], data: st.DataObject
) -> None:
    stream = b"".join(map(encode, messages))
    cuts = sorted(data.draw(st.lists(st.integers(0, len(stream)), max_size=8)))
    decoder = Decoder()
    found: list[Message] = []
    for start, stop in zip([0, *cuts], [*cuts, len(stream)], strict=True):
        found += decoder.feed(stream[start:stop])
    assert found == messages


def test_each_message_is_given_out_as_soon_as_its_last_byte_is_here() -> None:
    decoder = Decoder()
    stream = encode({"id": 1}) + encode({"id": 2})
    first = len(encode({"id": 1}))
    assert decoder.feed(stream[: first - 1]) == []
    assert decoder.feed(stream[first - 1 : first + 3]) == [{"id": 1}]
    assert decoder.feed(stream[first + 3 :]) == [{"id": 2}]


@pytest.mark.parametrize(
    "payload",
    [
        b"",
        b"{",
        b"[]",
        b"5",
        b"null",
        b'"text"',
        b"\xff\xfe",
        b'{"a": 1} x',
        b"[" * 200_000,
        b'{"a":' * 200_000,
        b'{"n": ' + b"9" * 10_000 + b"}",
    ],
)
def test_what_is_no_json_object_is_refused(payload: bytes) -> None:
    with pytest.raises(WireError):
        Decoder().feed(framed(payload))
    decoder = Decoder()
    with pytest.raises(WireError):
        for start in range(0, len(payload) + 4, 1000):
            decoder.feed(framed(payload)[start : start + 1000])


@pytest.mark.parametrize("length", [MAX_MESSAGE + 1, (1 << 32) - 1])
def test_an_oversize_message_is_refused_by_its_length_alone(length: int) -> None:
    decoder = Decoder()
    assert decoder.feed(struct.pack(">I", length)[:3]) == []
    with pytest.raises(WireError, match=str(MAX_MESSAGE)):
        decoder.feed(struct.pack(">I", length)[3:])


def test_the_largest_message_is_accepted() -> None:
    text = "x" * (MAX_MESSAGE - len(json.dumps({"t": ""}, separators=(",", ":"))))
    assert Decoder().feed(encode({"t": text})) == [{"t": text}]


@given(st.binary(max_size=200))
def test_garbage_is_waited_for_or_refused(garbage: bytes) -> None:
    decoder = Decoder()
    try:
        for message in decoder.feed(garbage):
            assert isinstance(message, dict)
    except WireError:
        return
