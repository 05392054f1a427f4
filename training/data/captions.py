"""Captions of the video files in a folder, from tables and from text files beside them (docs/data.md).

    captions.csv     the columns `file` and `caption`, separated by `,`, `;` or tabs
    captions.jsonl   an object with `file` and `caption` on each line
    NAME.txt         the caption of NAME.mp4 beside it

Where a file has captions from several of these, the last one in this order is used.
"""

import csv
import io
import json
import os
import re
import unicodedata
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import product
from pathlib import Path
from typing import Any

from kinema.errors import KinemaError
from kinema.files import find_files, read_text

FILE_COLUMNS = ("file", "file_name", "filename", "path", "video")
CAPTION_COLUMNS = ("caption", "text", "prompt")
"""Names of the two columns, in any letter case; the first that a table has counts."""

_TABLE_NAMES = ("captions", "metadata")  # data sets of Hugging Face have the latter
_TABLE_SUFFIXES = (".csv", ".tsv", ".jsonl")
_DELIMITERS = ",;\t|"
_TOO_MANY = "; a caption with the separator in it needs double quotes around it"


@dataclass(frozen=True)
class Row:
    """A caption as a table or a text file gives it.

    Attributes:
        place: the table and the line, `captions.csv:2`, or the text file.
        file: what it calls the video file.
        caption: the caption; empty for none.
    """

    place: str
    file: str
    caption: str


@dataclass
class Captions:
    """The captions of a folder.

    Attributes:
        of_file: caption of each video file that has one.
        without_file: captions that fit no video file, or more than one, by their place.
        replaced: video files with several captions that differ, and the places; the last caption is used.
    """

    of_file: dict[Path, str] = field(default_factory=dict)
    without_file: list[str] = field(default_factory=list)
    replaced: list[str] = field(default_factory=list)
    _places: dict[Path, str] = field(default_factory=dict, repr=False)

    def add(self, file: Path, row: Row) -> None:
        """Gives a file a caption; an empty one replaces none."""
        if not row.caption:
            return
        if self.of_file.get(file, row.caption) != row.caption:
            self.replaced.append(f"{str(file)!r}: {self._places[file]}, then {row.place}")
        self.of_file[file], self._places[file] = row.caption, row.place


def read_captions(folder: Path, files: Sequence[Path]) -> Captions:
    """The captions of the video files in a folder and below.

    Tables may lie in subfolders, too. They name files relative to where they lie, relative to `folder`, or by an
    absolute path. Letter case, Unicode normal form, kind of slash and suffix need not be those of the file, as long as
    only one file fits.

    Args:
        folder: the folder.
        files: its video files.

    Raises:
        KinemaError: a table or a text beside a video is not text in UTF-8 (or UTF-16 or UTF-32 with a byte order mark),
            or a line of a table is not a file and its caption; file and line are named.
    """
    names = _Names(folder, files)
    captions = Captions()
    tables = [file for file in find_files(folder, _TABLE_SUFFIXES) if file.stem.lower() in _TABLE_NAMES]
    for table in sorted(tables, key=lambda table: table.suffix.lower() == ".jsonl"):
        rows = read_table(table)
        for row, found in zip(rows, names.match([row.file for row in rows], table.parent), strict=True):
            if len(found) == 1:
                captions.add(found[0], row)
            else:
                reason = f"fits {len(found)} files" if found else "is no video file of the folder"
                captions.without_file.append(f"{row.place}: {row.file!r} {reason}")
    texts = find_files(folder, (".txt",))
    stems = [text.relative_to(folder).as_posix()[: -len(".txt")] for text in texts]
    beside = dict(zip(texts, names.match(stems, folder), strict=True))
    for text, row in _read_texts([text for text in texts if beside[text]]).items():
        for file in beside[text]:
            captions.add(file, row)
    captions.without_file += [f"{str(text)!r} is beside no video file" for text in texts if not beside[text]]
    return captions


def read_table(table: Path) -> list[Row]:
    """The rows of a table of captions, `.jsonl` or else CSV; none of a `metadata` table that is of another kind.

    Raises:
        KinemaError: it is not text in UTF-8, or a line is not a file and its caption; file and line are named.
    """
    text = read_text(table, "captions")
    records = _json_records(table, text) if table.suffix.lower() == ".jsonl" else _csv_records(table, text)
    rows: list[Row] = []
    for line, record in records:
        values = {str(name).strip().casefold(): value for name, value in record.items()}
        file, caption = (next((n for n in names if n in values), None) for names in (FILE_COLUMNS, CAPTION_COLUMNS))
        if (file is None or caption is None) and not rows and table.stem.lower() == "metadata":
            return []
        if file is None or caption is None:
            raise _wrong(table, line, f"must have `file` and `caption`, and has {', '.join(map(repr, record))}")
        name = _text(table, line, file, values[file])
        if not name.strip():
            raise _wrong(table, line, f"must name a file in `{file}`, which is empty")
        rows.append(Row(f"{table}:{line}", name, _caption(table, line, caption, values[caption])))
    return rows


def _wrong(table: Path, line: int, problem: str) -> KinemaError:
    return KinemaError(f"`captions` (={table}:{line}) {problem}")


def _text(table: Path, line: int, name: str, value: Any) -> str:
    if not isinstance(value, str):
        kinds = {list: "a list", dict: "an object", bool: "a truth value", type(None): "null"}
        raise _wrong(table, line, f"must have text in `{name}`, not {kinds.get(type(value), 'a number')}")
    return value


def _caption(table: Path, line: int, name: str, value: Any) -> str:
    """The caption in a row; tables that programs write have null where there is none."""
    text = "" if value is None else _text(table, line, name, value)
    if "\0" in text or any("\ud800" <= c <= "\udfff" for c in text):
        raise _wrong(table, line, f"must have text in `{name}`, not NUL characters or halves of surrogate pairs")
    return text.strip()


def _json_records(table: Path, text: str) -> Iterator[tuple[int, dict[str, Any]]]:
    # Not `splitlines`, which also splits at characters that JSON allows within its strings.
    for line, content in enumerate(re.split(r"\r\n|\n|\r", text), start=1):
        if not content.strip():
            continue
        try:
            record = json.loads(content)
        except json.JSONDecodeError as error:
            problem = f"must be one JSON object a line: {error.msg} at column {error.colno}"
            raise _wrong(table, line, problem) from error
        except (ValueError, RecursionError) as error:  # a number of too many digits, brackets too deep
            raise _wrong(table, line, f"must be one JSON object a line: {type(error).__name__}") from error
        if not isinstance(record, dict):
            raise _wrong(table, line, "must be one JSON object a line, with `file` and `caption`")
        yield line, record


def _csv_records(table: Path, text: str) -> Iterator[tuple[int, dict[str, Any]]]:
    stated = re.match(r'"?sep=(.)"?[\r\n]', text)  # as Excel writes it above the header
    delimiter = stated[1] if stated else _delimiter(table, text)
    lines = _csv_lines(table, text, delimiter)
    header: list[str] | None = None
    for line, cells in lines:
        if stated and line == 1:
            continue
        if header is None:
            header = cells
            if len({cell.strip().casefold() for cell in cells}) < len(cells):
                raise _wrong(table, line, "must have a header line that names each column once")
            continue
        if len(cells) != len(header):
            hint = _TOO_MANY if len(cells) > len(header) else ""
            raise _wrong(table, line, f"must have {len(header)} columns, as the header has, not {len(cells)}{hint}")
        yield line, dict(zip(header, cells, strict=True))


def _delimiter(table: Path, text: str) -> str:
    """What separates the columns: that which makes the two columns of the header.

    Raises:
        KinemaError: nothing does.
    """
    first = (1, [])
    for delimiter in _DELIMITERS:
        try:
            first = next(_csv_lines(table, text, delimiter), first)
        except KinemaError:  # quotes that belong to another delimiter
            continue
        names = {cell.strip().casefold() for cell in first[1]}
        if names & {*FILE_COLUMNS} and names & {*CAPTION_COLUMNS}:
            return delimiter
    if first[1] and table.stem.lower() != "metadata":
        problem = "must be a header line with the columns `file` and `caption`, separated by a comma, semicolon or tab"
        raise _wrong(table, first[0], problem)
    return ","


def _csv_lines(table: Path, text: str, delimiter: str) -> Iterator[tuple[int, list[str]]]:
    """The records that are not empty, each with the line on which it begins."""
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, skipinitialspace=True, strict=True)
    while True:
        line = reader.line_num + 1
        try:
            cells = next(reader, None)
        except csv.Error as error:
            problem = "a quote is not closed" if "end of data" in str(error) else str(error)
            raise _wrong(table, line, f"must be a line of a CSV file: {problem}") from error
        if cells is None:
            return
        if any(cell.strip() for cell in cells):
            yield line, cells


def _read_texts(texts: Sequence[Path]) -> dict[Path, Row]:
    """Captions that are whole text files.

    Raises:
        KinemaError: some are not text in UTF-8; the first is named and the others are counted.
    """
    rows: dict[Path, Row] = {}
    errors: list[KinemaError] = []
    for text in texts:
        try:
            caption = re.sub(r"\r\n?", "\n", read_text(text, "captions")).strip()
            rows[text] = Row(str(text), text.stem, caption)
        except KinemaError as error:
            errors.append(error)
    if errors:
        more = f" (and {len(errors) - 1} more text files are not)" if len(errors) > 1 else ""
        raise KinemaError(f"{errors[0]}{more}") from errors[0]
    return rows


def _composed(name: str) -> str:
    return unicodedata.normalize("NFC", name)


def _folded(name: str) -> str:
    return _composed(_composed(name).casefold())


class _Names:
    """Video files by what a caption may call them."""

    def __init__(self, folder: Path, files: Sequence[Path]) -> None:
        self._folder = folder
        roots = dict.fromkeys((os.path.abspath(folder), os.path.realpath(folder)))
        self._roots = [root.rstrip(os.sep) + os.sep for root in roots]
        # From the best fit to the loosest; without its suffix a name fits less well than with it.
        self._levels = [(key, {}) for _, key in product(range(2), (str, _composed, _folded))]
        for file in files:
            name = file.relative_to(folder).as_posix()
            forms = [name] * 3 + [name.removesuffix(file.suffix)] * 3
            for (key, known), form in zip(self._levels, forms, strict=True):
                known.setdefault(key(form), []).append(file)

    def match(self, names: Sequence[str], base: Path) -> list[list[Path]]:
        """For each name the files that it fits best, less those that another of the names fits better.

        Args:
            names: as a table in the folder `base` has them.
            base: a folder; what names are relative to, else they are relative to the folder of all files.
        """
        bases = list(dict.fromkeys((os.path.abspath(base), os.path.abspath(self._folder))))
        fits = [self._fit(name, bases) for name in names]
        best: dict[Path, int] = {}
        for level, files in fits:
            for file in files:
                best[file] = min(level, best.get(file, level))
        return [[file for file in files if best[file] == level] for level, files in fits]

    def _fit(self, name: str, bases: Sequence[str]) -> tuple[int, list[Path]]:
        """How well a name fits (a level, 0 is best) and which files it fits so well."""
        forms = self._relative(name, bases)
        for level, (key, known) in enumerate(self._levels):
            for form in forms:
                if found := known.get(key(form)):
                    return level, found
        return len(self._levels), []

    def _relative(self, name: str, bases: Sequence[str]) -> list[str]:
        """What a name may mean, relative to the folder."""
        spellings = dict.fromkeys((name, name.strip(), name.strip().replace("\\", "/")))
        forms: dict[str, None] = {}
        for spelling, base in product(spellings, bases):
            path = os.path.normpath(os.path.join(base, spelling))
            for root in self._roots:
                if path.startswith(root):
                    forms[path[len(root) :]] = None
        return list(forms)
