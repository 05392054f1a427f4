"""Detection of truncated Matroska files."""

import os

EBML, SEGMENT = 0x1A45DFA3, 0x18538067  # RFC 8794 section 8.1, RFC 9559 section 5.1


def is_cut_matroska(path: str | os.PathLike[str]) -> bool:
    """Whether a Matroska or WebM file is shorter than its segment header says; false for other and for live files."""
    size = os.stat(path).st_size
    with open(path, "rb") as file:
        data = file.read(4096)
    position = 0
    for wanted in (EBML, SEGMENT):
        identifier, position = _number(data, position, keep_marker=True)
        length, position = _number(data, position, keep_marker=False)
        if identifier != wanted or length is None:
            return False
        if wanted == SEGMENT:
            return position + length > size
        position += length
    return False


def _number(data: bytes, position: int, *, keep_marker: bool) -> tuple[int | None, int]:
    """Parse a variable-size integer (RFC 8794 section 4); return it (None: truncated or "unknown") and its end."""
    first = data[position] if position < len(data) else 0
    width = 9 - first.bit_length()
    if first == 0 or position + width > len(data):
        return None, position
    value = int.from_bytes(data[position : position + width], "big")
    if keep_marker:
        return value, position + width
    value &= (1 << 7 * width) - 1
    return (None if value == (1 << 7 * width) - 1 else value), position + width
