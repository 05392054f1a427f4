"""Finding, ordering and reading files."""

import errno
import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kinema.errors import KinemaError
from kinema.files import (
    atomic_path,
    check_input_file,
    check_output_file,
    counting_order,
    displayed,
    find_files,
    read_text,
    walk_folders,
)


@given(st.lists(st.integers(0, 10**6), min_size=2, max_size=8, unique=True))
def test_counting_order_sorts_numbers_by_value(numbers: list[int]):
    names = [f"video_{n}.mp4" for n in numbers]
    assert sorted(names, key=counting_order) == [f"video_{n}.mp4" for n in sorted(numbers)]


def test_counting_order_takes_padded_and_plain_numbers_and_other_digits():
    assert sorted(["a10", "a09", "a8", "a²", "b"], key=counting_order) == ["a8", "a09", "a10", "a²", "b"]


def test_find_files_takes_regular_files_in_any_case_and_survives_loops(tmp_path: Path):
    for name in ("a.MP4", "b10.mp4", "b2.mp4", ".hidden.mp4", "c.txt", "deep/d.Mp4", ".cache/e.mp4"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"x")
    (tmp_path / "folder.mp4").mkdir()
    os.mkfifo(tmp_path / "pipe.mp4")
    (tmp_path / "loop").symlink_to(tmp_path, target_is_directory=True)
    (tmp_path / "self.mp4").symlink_to(tmp_path / "self.mp4")
    found = [path.relative_to(tmp_path).as_posix() for path in find_files(tmp_path, (".mp4",))]
    assert found == ["a.MP4", "b2.mp4", "b10.mp4", "deep/d.Mp4"]


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-32"])
def test_read_text_knows_byte_order_marks(tmp_path: Path, encoding: str):
    file = tmp_path / "a.txt"
    file.write_bytes("un café\u2028\nvoilà".encode(encoding))
    assert read_text(file) == "un café\u2028\nvoilà"


@pytest.mark.parametrize(("data", "line"), [(b"one\ntwo caf\xe9\n", 2), ("a\nb".encode("utf-16-le"), 1)])
def test_read_text_names_file_and_line_of_what_it_cannot_decode(tmp_path: Path, data: bytes, line: int):
    file = tmp_path / "a.txt"
    file.write_bytes(data)
    with pytest.raises(KinemaError, match=rf"a\.txt', line {line}"):
        read_text(file)


def test_input_file_is_a_regular_file_that_is_not_empty(tmp_path: Path):
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "empty").touch()
    (tmp_path / "self").symlink_to(tmp_path / "self")
    for name, reason in {
        "pipe": "pipe",
        "empty": "empty",
        "self": "symbolic links",
        "absent": "does not exist",
        ".": "folder",
        "x" * 5000: "too long",
        "a\0b": "null",
    }.items():
        with pytest.raises(KinemaError, match=reason):
            check_input_file(tmp_path / name)


def test_a_folder_that_links_reach_too_has_its_own_name(tmp_path: Path):
    (tmp_path / "run2").mkdir()
    (tmp_path / "run2" / "a.mp4").write_bytes(b"x")
    (tmp_path / "latest").symlink_to(tmp_path / "run2", target_is_directory=True)
    (tmp_path / "run2" / "up").symlink_to(tmp_path, target_is_directory=True)
    assert [path.relative_to(tmp_path).as_posix() for path in find_files(tmp_path, (".mp4",))] == ["run2/a.mp4"]
    outside = tmp_path / "run2"
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "linked").symlink_to(outside, target_is_directory=True)
    found = find_files(tmp_path / "other", (".mp4",))
    assert [path.relative_to(tmp_path).as_posix() for path in found] == ["other/linked/a.mp4"]


def test_folders_that_cannot_be_listed_are_named(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    assert list(walk_folders(tmp_path / "none")) == []
    assert "skipped the folder" in caplog.text


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        ("café 東京 \U0001f697.mp4", "café 東京 \U0001f697.mp4"),
        ("क\u200dष", "क\u200dष"),
        ("a\nb\tc\x1b[31m\x07\x9b", r"a\nb\tc\x1b[31m\x07\x9b"),
        ("\u202egpj.exe", r"\u202egpj.exe"),
        ("a\u2028b", r"a\u2028b"),
        (os.fsdecode(b"a\xff"), r"a\xff"),
        ("\ud800", r"\ud800"),
    ],
)
def test_displayed_names_do_nothing_to_a_terminal(name: str, shown: str):
    assert displayed(name) == shown
    assert displayed(shown) == shown
    shown.encode()


def test_results_do_not_replace_what_is_no_file(tmp_path: Path):
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path / "pipe", Path("/dev/null")):
        with pytest.raises(KinemaError, match=r"`--json` .* must be a regular file"):
            check_output_file(path, overwrite=True, name="--json")
    (tmp_path / "file").touch()
    with pytest.raises(KinemaError, match="is a file"):
        check_output_file(tmp_path / "file" / "deep" / "r.json", overwrite=True)
    check_output_file(tmp_path / "new" / "deep" / "r.json", overwrite=False)
    assert not (tmp_path / "new").exists()


def test_folders_that_cannot_be_written_are_known_before_the_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(os, "access", lambda path, mode: Path(path) != tmp_path)  # a test may run as root
    with pytest.raises(KinemaError, match=r"`--json` .* must be in a folder that can be written"):
        check_output_file(tmp_path / "new" / "r.json", overwrite=True, name="--json")


def test_a_full_disk_is_named_and_leaves_nothing(tmp_path: Path):
    def write(error: OSError) -> None:
        with atomic_path(tmp_path / "r.json") as temporary:
            temporary.write_text("half")
            raise error

    for error in (OSError(errno.ENOSPC, "No space left on device"), OSError(errno.EDQUOT, "Disk quota exceeded")):
        with pytest.raises(KinemaError, match=r"r\.json'\) cannot be written: (No space|Disk quota)"):
            write(error)
    with pytest.raises(FileNotFoundError), atomic_path(tmp_path / "r.json"):
        (tmp_path / "another problem").read_text()
    assert list(tmp_path.iterdir()) == []
