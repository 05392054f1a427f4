"""Ways to damage bytes, JSON, safetensors files and text; all of them repeatable from a `random.Random`."""

import json
import pickle
import random
import struct
from collections.abc import Callable
from typing import Any

MARKER = "fuzz_executed"
"""A file that appears in the working folder if anything that a mutation contains was run."""


class _Runs:
    """Its pickle makes a file when it is loaded."""

    def __reduce__(self) -> tuple[Any, ...]:
        return open, (MARKER, "w")


def pickled() -> bytes:
    """A pickle that does something when it is loaded without care."""
    return pickle.dumps({"state_dict": _Runs()})


WORDS: list[str] = [
    "", " ", "\0", "a\nb", "\r", "\u2028", "é", "e\u0301", "क्षि", "🎥🎬", "\ud7ff", "\u202e", "a" * 5000, "-1",
    "--help", "NaN", "1e999", "../../etc/passwd", "/dev/zero", "/dev/stdin", "/proc/self/mem", "file:///etc/passwd",
    "%s%n", "{0}", "{x.__class__}", "os.system", "kinema", "KinemaPipeline", "torch.load", "runwayml/x", "C:\\x", "~",
    "*", "\x1b[31m", "\x7f", "0x10", f"$(touch {MARKER})", f"`touch {MARKER}`",
    f"__import__('os').system('touch {MARKER}')",
]  # fmt: skip

NUMBERS: list[Any] = [
    0, -1, 1, 2, 3, 7, 255, 2**15, 2**31 - 1, 2**31, 2**32, 2**53 + 1, 2**63, 2**64, 10**30, -(2**63), 0.0, -0.0, 0.5,
    1e-320, 1e308, float("nan"), float("inf"), float("-inf"),
]  # fmt: skip


def flip(data: bytes, rng: random.Random) -> bytes:
    """Some bits the other way round."""
    found = bytearray(data)
    for _ in range(rng.choice((1, 4, 64))):
        if found:
            found[rng.randrange(len(found))] ^= 1 << rng.randrange(8)
    return bytes(found)


def cut(data: bytes, rng: random.Random) -> bytes:
    """The beginning, or what is left without a piece in the middle."""
    first, last = sorted(rng.randrange(len(data) + 1) for _ in range(2))
    return data[:first] if rng.random() < 0.5 else data[:first] + data[last:]


def insert(data: bytes, rng: random.Random) -> bytes:
    """Noise, zeros, or a piece of itself in the middle."""
    place, length = rng.randrange(len(data) + 1), rng.choice((1, 7, 500, 70_000))
    piece = rng.choice((rng.randbytes(length), bytes(length), data[:length], b"\xff" * length))
    return data[:place] + piece + data[place:]


def overwrite(data: bytes, rng: random.Random) -> bytes:
    """A number at a place where one may be: lengths and sizes of binary formats."""
    value = rng.choice((0, 1, 2**7, 2**8 - 1, 2**15, 2**16 - 1, 2**24, 2**31 - 1, 2**31, 2**32 - 1))
    number = struct.pack(rng.choice("<>") + "I", value)
    place = rng.randrange(max(min(len(data), rng.choice((64, 2000, len(data)))), 1))
    return data[:place] + number + data[place + 4 :]


def replace(data: bytes, rng: random.Random) -> bytes:
    """Something else altogether."""
    kinds = [b"", b"\0" * 4096, rng.randbytes(4096), pickled(), b"PK\x03\x04" + rng.randbytes(200), b"<svg/>", b"{}"]
    return rng.choice((*kinds, b"#EXTM3U\n#EXTINF:1,\nfile:///etc/passwd\n", b"ffconcat version 1.0\nfile /dev/zero\n"))


_BYTES = (flip, flip, cut, insert, overwrite, overwrite, replace)


def any_bytes(data: bytes, rng: random.Random) -> bytes:
    """One or several of the ways to damage a file that may be of any format."""
    for _ in range(rng.choice((1, 1, 2, 3))):
        data = rng.choice(_BYTES)(data, rng)
    return data


def text(data: bytes, rng: random.Random) -> bytes:
    """Another encoding, odd characters, other ends of lines; or any bytes."""
    lines = data.decode("utf-8", "replace").split("\n")
    way = rng.randrange(8)
    if way == 0:
        return any_bytes(data, rng)
    if way == 1:
        codec = rng.choice(("utf-16", "utf-16-le", "utf-32", "latin-1", "cp1252", "utf-8-sig", "shift-jis", "utf-7"))
        return data.decode("utf-8", "replace").encode(codec, "replace")
    if way == 2:
        return rng.choice(("\r", "\r\n", "\u2028", "\x85", "\0", "")).join(lines).encode()
    for _ in range(rng.choice((1, 3))):
        place = rng.randrange(len(lines))
        line, word = lines[place], rng.choice(WORDS)
        split = rng.randrange(len(line) + 1)
        lines[place] = rng.choice((word, line[:split] + word + line[split:], line * 3, line[:split], f'"{line}', ""))
    if way == 3:
        lines = lines * rng.choice((2, 2000))
    return "\n".join(lines).encode("utf-8", "surrogatepass")


def _anything(rng: random.Random, value: Any) -> Any:
    """A value in the place of another: near it, of the same type, or of any."""
    deep: Any = 1
    for _ in range(rng.choice((2, 60))):
        deep = [deep] if rng.random() < 0.5 else {"a": deep}
    near: list[Any] = []
    if isinstance(value, bool):
        near = [not value, "true", int(value)]
    elif isinstance(value, int | float):
        near = [value + 1, value - 1, -value, value * 2, value / 2, str(value), [value]]
    elif isinstance(value, str):
        near = [value + "x", value[:-1], value.upper(), value * 2, [value]]
    elif isinstance(value, list):
        near = [value[:-1], value * 2, value[::-1], [value], dict(enumerate(map(str, value)))]
    elif isinstance(value, dict):
        near = [{}, list(value), value | {rng.choice(WORDS): value}]
    return rng.choice(
        (
            *near,
            *near,
            rng.choice(NUMBERS),
            rng.choice(NUMBERS),
            rng.choice(WORDS),
            None,
            [],
            {},
            deep,
            ["os", "system"],
        )
    )


def _places(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    found = [path]
    pairs = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in pairs:
        found += _places(inner, (*path, key))
    return found


def values(content: Any, rng: random.Random) -> Any:
    """Some values of what JSON holds replaced, left out or added."""
    for _ in range(rng.choice((1, 1, 1, 2, 5))):
        path = rng.choice(_places(content))
        if not path:
            if rng.random() < 0.1:
                content = _anything(rng, content)
            continue
        holder = content
        for key in path[:-1]:
            holder = holder[key]
        way = rng.random()
        if way < 0.75:
            holder[path[-1]] = _anything(rng, holder[path[-1]])
        elif way < 0.9:
            del holder[path[-1]]
        elif isinstance(holder, dict):
            holder[rng.choice(WORDS)] = _anything(rng, holder[path[-1]])
    return content


def json_file(data: bytes, rng: random.Random) -> bytes:
    """Other values mostly; sometimes no JSON at all, or nested beyond what any reader follows."""
    way = rng.random()
    if way < 0.15:
        return any_bytes(data, rng)
    if way < 0.2:
        return text(data, rng)
    if way < 0.25:
        return b"[" * 100_000
    return json.dumps(values(json.loads(data), rng), ensure_ascii=rng.random() < 0.5).encode("utf-8", "surrogatepass")


def safetensors_file(data: bytes, rng: random.Random) -> bytes:
    """Other values in the header, other numbers in the tensors, or any bytes."""
    way = rng.random()
    if way < 0.3:
        return any_bytes(data, rng)
    length = struct.unpack("<Q", data[:8])[0]
    header, tensors = data[8 : 8 + length], data[8 + length :]
    if way < 0.8:
        header = json.dumps(values(json.loads(header), rng)).encode("utf-8", "surrogatepass")
    else:  # not finite, huge or zero numbers where they may be met
        filler = rng.choice((b"\x00\x00\xc0\x7f", b"\xff\xff\x7f\x7f", b"\x00\x00\x80\xff", b"\0\0\0\0"))
        first = rng.randrange(max(len(tensors) // 4, 1)) * 4
        count = rng.choice((1, 50, len(tensors)))
        tensors = tensors[:first] + (filler * count)[: len(tensors) - first] + tensors[first + 4 * count :]
        tensors = tensors[: len(data) - 8 - length]
    return struct.pack("<Q", len(header)) + header + tensors


_BY_SUFFIX: dict[str, Callable[[bytes, random.Random], bytes]] = {
    ".json": json_file,
    ".jsonl": text,
    ".csv": text,
    ".tsv": text,
    ".txt": text,
    ".safetensors": safetensors_file,
}


def mutate(data: bytes, suffix: str, rng: random.Random) -> bytes:
    """A damaged version of a file, in ways that suit its format; one that is damaged already may be of none."""
    try:
        return _BY_SUFFIX.get(suffix.lower(), any_bytes)(data, rng)
    except (ValueError, RecursionError, struct.error):
        return any_bytes(data, rng)
