"""Conversion of patterns to and from text, for command lines and configs: `sliding-tile:3x3x1,tile=2x8x8`."""

import re
from dataclasses import MISSING, Field, dataclass, fields
from inspect import cleandoc
from itertools import groupby
from typing import Any, get_type_hints

from kinema.errors import KinemaError
from kinema.generation.attention.grid import Grid
from kinema.generation.attention.patterns import PATTERNS, Pattern, PerHead

_MAX_HEADS = 1024  # heads of one pattern in a text; more than any model has


def parse_pattern(text: str) -> Pattern:
    """Parse a pattern: `name`, `name:value` or `name:value,setting=value,...`.

    Triples are written 3x3x1, and one window per head 3x3x1/1x3x3. A value without a name is the pattern's main
    setting. `&` joins the patterns of several heads, and `*` repeats one: `band:spatial*6&band:temporal*6`.

    Raises:
        KinemaError: the pattern or a setting is unknown, or a value has the wrong type.
    """
    if "&" not in text and "*" not in text:
        return _parse_one(text, text)
    heads: list[Pattern] = []
    for part in text.split("&"):
        one, star, number = part.partition("*")
        if star and not (number.isdecimal() and 1 <= int(number) <= _MAX_HEADS):
            raise KinemaError(
                f"`pattern` (={text}) must give a number of heads from 1 to {_MAX_HEADS} behind `*`, not {number!r}"
            )
        heads += [_parse_one(one, text)] * int(number or 1)
    return PerHead(tuple(heads))


def _parse_one(part: str, text: str) -> Pattern:
    """Parse one pattern without `&` and `*`; `text` is the whole input, for errors."""
    name, _, rest = part.partition(":")
    if name not in PATTERNS:
        where = "" if part == text else f", not {name!r}"
        raise KinemaError(f"`pattern` (={text}) must begin with one of {', '.join(PATTERNS)}{where}")
    kind, main = PATTERNS[name]
    known = {field.name: field for field in fields(kind)}  # pyright: ignore[reportArgumentType]
    values: dict[str, Any] = {}
    for index, item in enumerate(rest.split(",") if rest else []):
        setting, equals, value = item.partition("=")
        if not equals and index == 0 and main:
            setting, value = main, item
        if setting not in known or setting in values:
            allowed = ", ".join(known) or "no settings"
            raise KinemaError(f"`pattern` (={text}) must have settings out of {allowed}, each once; not {item!r}")
        values[setting] = _value(kind, known[setting], value, text)
    return kind(**values)


def parse_patterns(text: str) -> tuple[Pattern, ...]:
    """Parse patterns that blocks cycle through, separated by `+`: `spatial+temporal`.

    Raises:
        KinemaError: as in `parse_pattern`.
    """
    return tuple(parse_pattern(part) for part in text.split("+"))


def pattern_text(pattern: Pattern) -> str:
    """Return the text of a pattern for `parse_pattern`: the main setting, and those that differ from the defaults.

    Raises:
        KinemaError: the pattern is not in `PATTERNS`.
    """
    if isinstance(pattern, PerHead):
        kinds = [(pattern_text(kind), len(list(heads))) for kind, heads in groupby(pattern.patterns)]
        return "&".join(text if number == 1 < len(kinds) else f"{text}*{number}" for text, number in kinds)
    if pattern.name not in PATTERNS:
        raise KinemaError(f"`pattern` (={pattern}) must be one of {', '.join(PATTERNS)} to be written as text")
    settings = fields(pattern)  # pyright: ignore[reportArgumentType]
    values = {each.name: getattr(pattern, each.name) for each in settings}
    main = PATTERNS[pattern.name][1]
    # The main setting comes first, without its name, even if it is the default.
    parts = [_text(values[main])] if main and values[main] is not None else []
    parts += [
        f"{each.name}={_text(values[each.name])}"
        for each in settings
        if each.name != main and (each.default is MISSING or values[each.name] != each.default)
    ]
    return pattern.name + ":" * bool(parts) + ",".join(parts)


@dataclass(frozen=True)
class PatternHelp:
    """The help text of a pattern, taken from its docstring.

    Attributes:
        summary: the first sentence.
        settings: name, default (None: no default) and description of each setting, the main setting first.
    """

    summary: str
    settings: tuple[tuple[str, str | None, str], ...]


def pattern_help(name: str) -> PatternHelp:
    """Return the help text of a pattern.

    Raises:
        KinemaError: `name` is not in `PATTERNS`.
    """
    if name not in PATTERNS:
        raise KinemaError(f"`name` (={name}) must be one of {', '.join(PATTERNS)}")
    kind, main = PATTERNS[name]
    doc = cleandoc(kind.__doc__ or "")
    summary = " ".join(doc.split("\n\n")[0].split()).split(". ")[0].rstrip(".:")
    settings: list[tuple[str, str | None, str]] = []
    for each in fields(kind):  # pyright: ignore[reportArgumentType]
        # The line "    name: description" below "Args:", and its continuation lines.
        found = re.search(rf"^    {each.name}: (.*(?:\n {{8,}}.*)*)", doc, re.MULTILINE)
        default = None if each.default in (MISSING, None) else _text(each.default)
        settings.append((each.name, default, " ".join(found[1].split()) if found else ""))
    return PatternHelp(summary, tuple(sorted(settings, key=lambda setting: setting[0] != main)))


def _text(value: Any) -> str:
    if not isinstance(value, tuple):
        return str(value)
    return ("/" if isinstance(value[0], tuple) else "x").join(map(_text, value))


def _value(kind: type[Pattern], field: Field[Any], value: str, text: str) -> Any:
    """Convert a setting's text by its type: number, tuple of numbers, or string."""
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
    """Parse a grid `TxHxW`: number of tokens along time, height and width.

    Raises:
        KinemaError: the text does not have this form.
    """
    parts = text.split("x")
    if len(parts) != 3 or not all(part.isdecimal() for part in parts):
        raise KinemaError(f"`grid` (={text}) must be FRAMESxHEIGHTxWIDTH in tokens, for example 21x45x80")
    return Grid(*(int(part) for part in parts))
