"""Messages as they are on the wire (Protocol Buffers, "Encoding"), without a schema."""

from collections.abc import Iterator

Value = bytes | str | int
Fields = dict[int, list[bytes | int]]
"""A message that was read: by field number, all values in their order."""

_VARINT, _FIXED64, _LENGTH, _FIXED32 = 0, 1, 2, 5


def message(*fields: tuple[int, Value]) -> bytes:
    """A message of these fields, numbers with their values; bytes are a message inside."""
    out = bytearray()
    for number, value in fields:
        if isinstance(value, int):
            out += _varint(number << 3 | _VARINT) + _varint(value)
        else:
            content = value.encode() if isinstance(value, str) else value
            out += _varint(number << 3 | _LENGTH) + _varint(len(content)) + content
    return bytes(out)


def fields(content: bytes) -> Fields:
    """The fields of a message. Raises ValueError for a wire type that is not in use."""
    found: Fields = {}
    for number, value in _walk(content):
        found.setdefault(number, []).append(value)
    return found


def _walk(content: bytes) -> Iterator[tuple[int, bytes | int]]:
    position = 0
    while position < len(content):
        tag, position = _read_varint(content, position)
        kind = tag & 7
        if kind == _VARINT:
            value, position = _read_varint(content, position)
            yield tag >> 3, value
            continue
        if kind == _LENGTH:
            size, position = _read_varint(content, position)
        elif kind in (_FIXED64, _FIXED32):
            size = 8 if kind == _FIXED64 else 4
        else:
            raise ValueError(f"wire type {kind}")
        yield tag >> 3, content[position : position + size]
        position += size


def _varint(number: int) -> bytes:
    out = bytearray()
    while number > 0x7F:
        out.append(number & 0x7F | 0x80)
        number >>= 7
    return bytes([*out, number])


def _read_varint(content: bytes, position: int) -> tuple[int, int]:
    number = shift = 0
    while True:
        byte = content[position]
        position += 1
        number |= (byte & 0x7F) << shift
        shift += 7
        if byte < 0x80:
            return number, position
