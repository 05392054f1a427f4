"""Patterns as text, for command lines and configs: `sliding-tile:3x3x1,tile=2x8x8`."""

import re
from dataclasses import MISSING, Field, dataclass, fields
from inspect import cleandoc
from itertools import groupby
from typing import Any, get_type_hints

from kinema.errors import KinemaError
from kinema.generation.attention.grid import Grid
from kinema.generation.attention.patterns import PATTERNS, Pattern, PerHead

_MOST_HEADS = 1024  # of a kind in a text: more than any model has


def parse_pattern(text: str) -> Pattern:
    """The pattern that a text names: `name`, `name:value` or `name:value,setting=value,...`.

    Triples are written 3x3x1, windows for each head 3x3x1/1x3x3. The value without a name is the pattern's main one.
    Heads of several kinds are separated by `&`, with how many of a kind there are: `band:spatial*6&band:temporal*6`.

    Raises:
        KinemaError: the pattern or a setting is unknown, or a value is none of its kind.
    """
    if "&" not in text and "*" not in text:
        return _parse_one(text, text)
    heads: list[Pattern] = []
    for part in text.split("&"):
        one, star, number = part.partition("*")
        if star and not (number.isdecimal() and 1 <= int(number) <= _MOST_HEADS):
            raise KinemaError(
                f"`pattern` (={text}) must give a number of heads from 1 to {_MOST_HEADS} behind `*`, not {number!r}"
            )
        heads += [_parse_one(one, text)] * int(number or 1)
    return PerHead(tuple(heads))


def _parse_one(part: str, text: str) -> Pattern:
    """A pattern without heads; `text` is what was given."""
    name, _, rest = part.partition(":")
    if name not in PATTERNS:
        where = "" if part == text else f", not {name!r}"
        raise KinemaError(f"`pattern` (={text}) must begin with one of {', '.join(PATTERNS)}{where}")
    kind, main = PATTERNS[name]
    known = {field.name: field for field in fields(kind)}  # pyright: ignore[reportArgumentType]
    values: dict[str, Any] = {}
    for index, given in enumerate(rest.split(",") if rest else []):
        setting, equals, value = given.partition("=")
        if not equals and index == 0 and main:
            setting, value = main, given
        if setting not in known or setting in values:
            allowed = ", ".join(known) or "no settings"
            raise KinemaError(f"`pattern` (={text}) must have settings out of {allowed}, each once; not {given!r}")
        values[setting] = _value(kind, known[setting], value, text)
    return kind(**values)


def parse_patterns(text: str) -> tuple[Pattern, ...]:
    """Patterns that blocks take in turns, separated by `+`: `spatial+temporal`.

    Raises:
        KinemaError: as `parse_pattern`.
    """
    return tuple(parse_pattern(part) for part in text.split("+"))


def pattern_text(pattern: Pattern) -> str:
    """The text that `parse_pattern` reads back, with the main setting and those that differ from the defaults.

    Raises:
        KinemaError: it is none of the known patterns.
    """
    if isinstance(pattern, PerHead):
        kinds = [(pattern_text(kind), len(list(heads))) for kind, heads in groupby(pattern.patterns)]
        return "&".join(text if number == 1 < len(kinds) else f"{text}*{number}" for text, number in kinds)
    if pattern.name not in PATTERNS:
        raise KinemaError(f"`pattern` (={pattern}) must be one of {', '.join(PATTERNS)} to be written as text")
    settings = fields(pattern)  # pyright: ignore[reportArgumentType]
    values = {each.name: getattr(pattern, each.name) for each in settings}
    main = PATTERNS[pattern.name][1]
    # The main setting first, without its name, whatever it is.
    parts = [_text(values[main])] if main and values[main] is not None else []
    parts += [
        f"{each.name}={_text(values[each.name])}"
        for each in settings
        if each.name != main and (each.default is MISSING or values[each.name] != each.default)
    ]
    return pattern.name + ":" * bool(parts) + ",".join(parts)


@dataclass(frozen=True)
class PatternHelp:
    """What there is to say about a pattern, for people who look for one.

    Attributes:
        summary: the first sentence of what it says of itself.
        settings: each setting's name, default (None: there is none) and meaning, the main one first.
    """

    summary: str
    settings: tuple[tuple[str, str | None, str], ...]


def pattern_help(name: str) -> PatternHelp:
    """What a pattern says of itself in its docstring.

    Raises:
        KinemaError: the name is unknown.
    """
    if name not in PATTERNS:
        raise KinemaError(f"`name` (={name}) must be one of {', '.join(PATTERNS)}")
    kind, main = PATTERNS[name]
    doc = cleandoc(kind.__doc__ or "")
    summary = " ".join(doc.split("\n\n")[0].split()).split(". ")[0].rstrip(".:")
    settings: list[tuple[str, str | None, str]] = []
    for each in fields(kind):  # pyright: ignore[reportArgumentType]
        # A line "    name: meaning" below "Args:", and those that follow with more indentation.
        found = re.search(rf"^    {each.name}: (.*(?:\n {{8,}}.*)*)", doc, re.MULTILINE)
        default = None if each.default in (MISSING, None) else _text(each.default)
        settings.append((each.name, default, " ".join(found[1].split()) if found else ""))
    return PatternHelp(summary, tuple(sorted(settings, key=lambda setting: setting[0] != main)))


def _text(value: Any) -> str:
    if not isinstance(value, tuple):
        return str(value)
    return ("/" if isinstance(value[0], tuple) else "x").join(map(_text, value))


def _value(kind: type[Pattern], field: Field[Any], value: str, text: str) -> Any:
    """A setting's value by its type: numbers, tuples of them, words."""
    hint = get_type_hints(kind)[field.name]
    try:
        if "tuple" in str(hint):
            heads = [_numbers(part) for part in value.split("/")]
            return heads[0] if len(heads) == 1 else tuple(heads)
        if hint is str:
            return value
        return float(value) if "float" in str(hint) else int(value)
    except ValueError:
        kinds = "numbers like 3x3x1" if "tuple" in str(hint) else "a number"
        raise KinemaError(f"`pattern` (={text}) must give {kinds} for `{field.name}`, not {value!r}") from None


def _numbers(text: str) -> tuple[int, ...]:
    return tuple(int(part) for part in text.split("x"))


def parse_grid(text: str) -> Grid:
    """A grid: numbers of tokens along time, height and width from `TxHxW`.

    Raises:
        KinemaError: the text is not of this form.
    """
    parts = text.split("x")
    if len(parts) != 3 or not all(part.isdecimal() for part in parts):
        raise KinemaError(f"`grid` (={text}) must be FRAMESxHEIGHTxWIDTH in tokens, for example 21x45x80")
    return Grid(*(int(part) for part in parts))
