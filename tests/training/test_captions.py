"""Captions of folders: which file a row means, encodings, tables, and what is wrong with them."""

import codecs
import json
import os
import unicodedata
from pathlib import Path

import pytest

from kinema.errors import KinemaError
from kinema.training.data.captions import read_captions, read_table

FILE = "sub/Café 1.MP4"
NFC, NFD = (unicodedata.normalize(form, FILE) for form in ("NFC", "NFD"))


def captions_of(folder: Path, files: list[str], **texts: str | bytes) -> dict[str, str]:
    """Captions by the file's name, of empty files and of other files with these contents."""
    for name in files:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()
    for name, content in texts.items():
        (folder / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    found = read_captions(folder, [folder / name for name in files])
    return {file.relative_to(folder).as_posix(): caption for file, caption in found.of_file.items()}


def lines(*rows: object) -> str:
    return "".join(json.dumps(row) + "\n" for row in rows)


def row(file: str, caption: object = "a red car") -> dict[str, object]:
    return {"file": file, "caption": caption}


@pytest.mark.parametrize(
    "name",
    [
        *(NFC, NFD, "./" + NFC, "sub/./" + NFC[4:], "sub//" + NFC[4:], "sub/../" + NFC, "x/../" + NFD),
        *(NFC.replace("/", "\\"), ".\\" + NFD.replace("/", "\\"), NFC.upper(), NFC.lower(), f" {NFC} "),
        *(NFC[:-4], NFD[:-4].lower(), "{folder}/" + NFC, "{folder}/../{name}/" + NFD, "../{name}/" + NFC),
        *("{link}/" + NFC, "{folder}/" + NFC.lower()),
    ],
)
@pytest.mark.parametrize("stored", [NFC, NFD], ids=["NFC", "NFD"])
def test_rows_name_a_file_in_any_usual_way(tmp_path, name, stored):
    folder = tmp_path / "Data"
    folder.mkdir()
    (tmp_path / "link").symlink_to(folder)
    name = name.format(folder=folder, name="Data", link=tmp_path / "link")
    assert captions_of(tmp_path / "link", [stored, "other.mp4"], **{"captions.jsonl": lines(row(name))}) == {
        stored: "a red car"
    }


@pytest.mark.parametrize(
    "name", ["a.mov", "b.mp4", "sub/a.mp4", "../a.mp4", "/a.mp4", "", "a.mp", "C:\\x\\a.mp4", "a.mp4/"]
)
def test_other_names_are_no_file_and_are_told(tmp_path, name):
    (tmp_path / "a.mp4").touch()
    (tmp_path / "captions.csv").write_text(f'file,caption\n"{name or "x"}",a red car\n')
    captions = read_captions(tmp_path, [tmp_path / "a.mp4"])
    if name == "a.mp4/":  # a slash too many changes nothing
        assert captions.of_file == {tmp_path / "a.mp4": "a red car"}
        return
    assert not captions.of_file
    assert captions.without_file == [f"{tmp_path / 'captions.csv'}:2: {name or 'x'!r} is no video file of the folder"]


def test_exact_names_win_and_several_fits_are_told(tmp_path):
    files = ["a.mp4", "A.mp4", "b.mp4", "b.mov", "c.mp4", "100%.mp4"]
    for name in files:
        (tmp_path / name).touch()
    rows = [row("a.mp4", "small"), row("A.MP4", "none"), row("b", "none"), row("C.MP4", "loose"), row("c.mp4", "exact")]
    rows += [row("100%.mp4", "all of it, 100%d")]
    (tmp_path / "captions.jsonl").write_text(lines(*rows))
    found = read_captions(tmp_path, [tmp_path / name for name in files])
    assert {file.name: caption for file, caption in found.of_file.items()} == {
        "a.mp4": "small",
        "c.mp4": "exact",
        "100%.mp4": "all of it, 100%d",
        "A.mp4": "none",
    }
    place = tmp_path / "captions.jsonl"
    assert found.without_file == [f"{place}:3: 'b' fits 2 files", f"{place}:4: 'C.MP4' is no video file of the folder"]
    assert not found.replaced


def test_names_that_are_not_utf_8(tmp_path):
    name = os.fsdecode(b"caf\xe9.mp4")
    try:
        (tmp_path / name).touch()
    except OSError:
        pytest.skip("this file system takes UTF-8 names only")
    assert captions_of(tmp_path, [name], **{"captions.jsonl": lines(row(name))}) == {name: "a red car"}
    text = os.fsdecode(b"caf\xe9.txt")
    assert captions_of(tmp_path, [name], **{text: "a blue car"}) == {name: "a blue car"}
    os.unlink(tmp_path / text)
    assert captions_of(tmp_path, [name], **{"captions.jsonl": lines(row("caf\N{REPLACEMENT CHARACTER}.mp4"))}) == {}


@pytest.mark.parametrize("name", ["a\nb.mp4", "-a.mp4", "a'b\".mp4", "a,b;c.mp4", " a .mp4", "a.b.mp4", "é\u2028.mp4"])
def test_odd_names(tmp_path, name):
    assert captions_of(tmp_path, [name], **{"captions.jsonl": lines(row(name, "one"))}) == {name: "one"}
    quoted = name.replace('"', '""')
    table = {"captions.csv": f'file,caption\n"{quoted}",two\n', "captions.jsonl": ""}
    assert captions_of(tmp_path, [name], **table) == {name: "two"}
    assert captions_of(tmp_path, [name], **{name[:-4] + ".txt": "three"}) == {name: "three"}


@pytest.mark.parametrize(
    ("video", "text"),
    [("A.MP4", "A.txt"), ("a.mp4", "a.TXT"), ("a.Mov", "A.Txt"), ("a.mp4", "a.mp4.txt"), ("a.b.mp4", "a.b.txt")],
)
def test_texts_beside_videos_in_any_letter_case(tmp_path, video, text):
    assert captions_of(tmp_path, [video, "z.mp4"], **{text: " a red car\r\n"}) == {video: "a red car"}


def test_each_video_has_its_own_text_where_case_alone_differs(tmp_path):
    found = captions_of(tmp_path, ["a.mp4", "A.mp4", "b.MP4", "b.mov"], **{"a.txt": "1", "A.txt": "2", "B.txt": "3"})
    assert found == {"a.mp4": "1", "A.mp4": "2", "b.MP4": "3", "b.mov": "3"}


def test_later_kinds_win_and_differences_are_told(tmp_path):
    files = [tmp_path / name for name in ("a.mp4", "b.mp4", "c.mp4")]
    for file in files:
        file.touch()
    (tmp_path / "Captions.CSV").write_text("file,caption\na.mp4,csv\nb.mp4,csv\nc.mp4,csv\n")
    (tmp_path / "captions.JSONL").write_text(lines(row("b.mp4", "jsonl"), row("c.mp4", "jsonl"), row("c.mp4", "again")))
    (tmp_path / "c.txt").write_text("text")
    found = read_captions(tmp_path, files)
    assert [found.of_file[file] for file in files] == ["csv", "jsonl", "text"]
    assert [line.split(": ")[0] for line in found.replaced] == [repr(str(files[1]))] + 3 * [repr(str(files[2]))]
    assert "captions.JSONL:2, then" in found.replaced[2]
    assert not found.without_file


def test_tables_in_subfolders(tmp_path):
    (tmp_path / "sub").mkdir()
    for name in ("a.mp4", "sub/a.mp4", "sub/b.mp4"):
        (tmp_path / name).touch()
    (tmp_path / "sub/captions.csv").write_text("file,caption\na.mp4,of the subfolder\nsub/b.mp4,by the whole name\n")
    found = read_captions(tmp_path, [tmp_path / name for name in ("a.mp4", "sub/a.mp4", "sub/b.mp4")])
    assert found.of_file == {
        tmp_path / "sub/a.mp4": "of the subfolder",
        tmp_path / "sub/b.mp4": "by the whole name",
    }


@pytest.mark.parametrize(
    "encode",
    [
        lambda text: text.encode(),
        lambda text: codecs.BOM_UTF8 + text.encode(),
        lambda text: text.encode("utf-16"),
        lambda text: codecs.BOM_UTF16_BE + text.encode("utf-16-be"),
        lambda text: text.encode("utf-32"),
        lambda text: codecs.BOM_UTF32_BE + text.encode("utf-32-be"),
    ],
    ids=["utf-8", "utf-8-bom", "utf-16-le", "utf-16-be", "utf-32-le", "utf-32-be"],
)
@pytest.mark.parametrize("newline", ["\n", "\r\n", "\r"], ids=["LF", "CRLF", "CR"])
def test_encodings_and_ends_of_lines(tmp_path, encode, newline):
    caption = "un café rouge\u2028\u0085, \N{AUTOMOBILE}"
    for name, text in {
        "captions.jsonl": newline.join(json.dumps(row(f, caption), ensure_ascii=False) for f in ("a.mp4", "b.mp4")),
        "captions.csv": newline.join(["file,caption", f'a.mp4,"{caption}"', f'b.mp4,"{caption}"']),
        "a.txt": caption,
        "b.txt": caption,
    }.items():
        folder = tmp_path / name
        folder.mkdir()
        files = ["a.mp4", "b.mp4"] if name.startswith("captions") else [name[:-4] + ".mp4"]
        assert captions_of(folder, files, **{name: encode(text)}) == dict.fromkeys(files, caption)


@pytest.mark.parametrize("data", [b"\n\xe9", "\n\u00e9".encode("utf-16-le"), b"\n\x00a", b"\xff\xfe\n\x00\x00\xd8"])
@pytest.mark.parametrize("name", ["a.txt", "captions.jsonl", "captions.csv"])
def test_what_is_not_text_is_an_error_with_file_and_line(tmp_path, data, name):
    with pytest.raises(KinemaError, match=rf"`captions` \(='.*{name}', line [12]\) must be text in UTF-"):
        captions_of(tmp_path, ["a.mp4"], **{name: data})


def test_texts_that_are_not_utf_8_are_counted_and_others_do_not_matter(tmp_path):
    with pytest.raises(KinemaError, match=r"a\.txt.*\(and 1 more text files are not\)"):
        captions_of(tmp_path, ["a.mp4", "b.mp4"], **{"a.txt": b"\xe9", "b.txt": b"\xe9"})
    (tmp_path / "a.txt").unlink()
    (tmp_path / "b.txt").rename(tmp_path / "readme.txt")
    found = read_captions(tmp_path, [tmp_path / "a.mp4"])
    assert found.without_file == [f"{str(tmp_path / 'readme.txt')!r} is beside no video file"]


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        ('{"file": "a.mp4"}', "must have `file` and `caption`, and has 'file'"),
        ('{"caption": "a"}', "must have `file` and `caption`, and has 'caption'"),
        ("[1]", "must be one JSON object a line"),
        ("{broken", "must be one JSON object a line: .* at column 2"),
        ("[" * 100_000, "must be one JSON object a line"),
        ("1" * 5000, "must be one JSON object a line"),
        ('{"file": "a.mp4", "caption": 3}', "must have text in `caption`, not a number"),
        ('{"file": "a.mp4", "caption": ["a", "b"]}', "must have text in `caption`, not a list"),
        ('{"file": "a.mp4", "caption": "\\ud800"}', "must have text in `caption`, not NUL"),
        ('{"file": "a.mp4", "caption": "\\u0000"}', "must have text in `caption`, not NUL"),
        ('{"file": null, "caption": "a"}', "must have text in `file`, not null"),
        ('{"file": " ", "caption": "a"}', "must name a file"),
    ],
)
def test_a_wrong_line_of_json_is_named(tmp_path, content, problem):
    table = tmp_path / "captions.jsonl"
    table.write_text(f'\n{{"file": "a.mp4", "caption": "fine"}}\n{content}\n')
    with pytest.raises(KinemaError, match=rf"captions\.jsonl:3\) {problem}") as error:
        read_table(table)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("content", "line", "problem"),
    [
        ("file,caption\na.mp4,fine\nb.mp4,a car, red\n", 3, "must have 2 columns, as the header has, not 3; a caption"),
        ("file,caption\na.mp4\n", 2, "must have 2 columns, as the header has, not 1"),
        (
            'file,caption\na.mp4,fine\nb.mp4,"a car\nc.mp4,fine\n',
            3,
            "must be a line of a CSV file: a quote is not closed",
        ),
        ('file,caption\nb.mp4,"a car\nc.mp4,"fine"\n', 2, "must be a line of a CSV file"),
        ("a.mp4,a red car\nb.mp4,fine\n", 1, "must be a header line with the columns `file` and `caption`"),
        ("\n\nname,caption\na.mp4,fine\n", 3, "must be a header line"),
        ("file,caption,caption\na.mp4,fine,fine\n", 1, "must have a header line that names each column once"),
        ("file,caption\n,fine\n", 2, "must name a file"),
        ("sep=;\nfile,caption\na.mp4,fine\n", 3, "must have `file` and `caption`"),
    ],
)
def test_a_wrong_line_of_csv_is_named(tmp_path, content, line, problem):
    table = tmp_path / "captions.csv"
    table.write_text(content)
    with pytest.raises(KinemaError, match=rf"captions\.csv:{line}\) {problem}") as error:
        read_table(table)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "content",
    [
        'file,caption\na.mp4,"a car, red"\n',
        'caption,other,file\n"a car, red",,a.mp4\n',
        ' File , CAPTION \na.mp4, "a car, red"\n,\n\n',
        "file;caption\na.mp4;a car, red\n",
        'sep=;\r\n"file";"caption"\r\n"a.mp4";"a car, red"\r\n',
        "file\tcaption\na.mp4\ta car, red\n",
        "file_name|text\na.mp4|a car, red\n",
        '"file","caption"\n"a.mp4","a car, red"',
    ],
)
def test_csv_of_all_kinds(tmp_path, content):
    assert captions_of(tmp_path, ["a.mp4"], **{"captions.csv": content}) == {"a.mp4": "a car, red"}


def test_a_caption_may_have_lines_and_quotes(tmp_path):
    table = {"captions.csv": 'file,caption\na.mp4,"a ""red""\ncar"\nb.mp4,fine\n'}
    assert captions_of(tmp_path, ["a.mp4", "b.mp4"], **table) == {"a.mp4": 'a "red"\ncar', "b.mp4": "fine"}


def test_names_of_the_columns_and_captions_that_are_missing(tmp_path):
    rows = lines({"file_name": "a.mp4", "text": "one", "more": [1]}, {"Path": "b.mp4", "Prompt": "two"})
    assert captions_of(tmp_path, ["a.mp4", "b.mp4"], **{"metadata.jsonl": rows}) == {"a.mp4": "one", "b.mp4": "two"}
    (tmp_path / "metadata.jsonl").write_text(lines(row("a.mp4", None), row("b.mp4", "")))
    assert captions_of(tmp_path, ["a.mp4", "b.mp4"]) == {}
    for other in ('{"a": 1}\n{"b": 2}\n', ""):  # a `metadata` of another kind is none of ours
        (tmp_path / "metadata.jsonl").write_text(other)
        assert captions_of(tmp_path, ["a.mp4", "b.mp4"], **{"metadata.csv": "width,height\n1,2\n"}) == {}
    assert captions_of(tmp_path, ["a.mp4"], **{"captions.csv": "", "captions.jsonl": "\n\n"}) == {}


def test_an_empty_text_replaces_no_caption(tmp_path):
    texts: dict[str, str | bytes] = {"captions.csv": "file,caption\na.mp4,red\n", "a.txt": " \n"}
    assert captions_of(tmp_path, ["a.mp4"], **texts) == {"a.mp4": "red"}
