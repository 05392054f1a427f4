"""`kinema eval` with names of files that no one would choose: right results, whole files, a terminal left alone."""

import io
import json
import os
from pathlib import Path

import numpy as np
import pytest
import torch

from kinema.apps.cli import main

NAMES = [
    os.fsencode(name)
    for name in ("-x", "--json", "a\nb", "<script>alert(1)</script>".replace("/", "_"), "'\"&", "\x1b[31mred", "\u202e")
] + [b"\xff\xfe", b" ", "नमस्ते".encode(), b"%s{0}"]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Two folders with the same strange clips, of which one is damaged."""
    monkeypatch.chdir(tmp_path)
    for side in ("real", "fake"):
        Path(side).mkdir()
        for index, name in enumerate(NAMES):
            frames = torch.full((9, 16, 16, 3), index * 20 + (side == "fake"), dtype=torch.uint8)
            np.save(os.fsdecode(os.fsencode(side) + b"/" + name + b".npy"), frames.numpy())
    Path("fake", os.fsdecode(NAMES[7] + b".npy")).write_bytes(b"broken")
    Path("prompts.txt").write_text("".join(f"<b>{index}</b>\n" for index in range(len(NAMES))))
    return tmp_path


def checked(capsys: pytest.CaptureFixture[str]) -> dict:
    """The figures; that all that was written is text, and that nothing in it obeys a name."""
    captured = capsys.readouterr()
    for line in (captured.out + captured.err).splitlines():
        assert all(letter.isprintable() or letter in "\u200d" for letter in line), ascii(line)
    page = Path("r.html").read_text(encoding="utf-8")
    assert "<script>" not in page
    assert "\x1b" not in page
    assert "\u202e" not in page
    return json.loads(Path("r.json").read_text(encoding="utf-8"))


def test_compare(folder: Path, capsys: pytest.CaptureFixture[str]):
    line = "eval compare real fake --metrics psnr --max-unreadable 0.2 --json r.json --html r.html"
    assert main(line.split()) == 0
    found = checked(capsys)
    assert list(found["unreadable"]) == ["clips/" + os.fsdecode(NAMES[7])]
    assert {clip["name"] for clip in found["clips"]} == {os.fsdecode(name) for name in NAMES if name != NAMES[7]}


def test_generation(folder: Path, capsys: pytest.CaptureFixture[str]):
    line = "eval generation --clips fake --prompts prompts.txt --metrics temporal_flickering --max-unreadable 0.2"
    assert main(f"{line} --json r.json --html r.html".split()) == 0
    found = checked(capsys)
    assert len(found["clips"]) == len(NAMES) - 1
    assert list(found["unreadable"]) == [os.fsdecode(NAMES[7])]


def test_a_folder_and_results_of_strange_names(folder: Path, capsys: pytest.CaptureFixture[str]):
    strange = os.fsdecode(b"fake \xff\x1b[1m\n")
    Path("fake").rename(strange)
    options = ["--metrics", "psnr", "--max-unreadable", "0.2", "--json", "r.json", "--html", "r.html"]
    assert main(["eval", "compare", "real", strange, *options]) == 0
    checked(capsys)
    assert main(["eval", "compare", "real", strange, "--metrics", "psnr"]) == 2
    error = capsys.readouterr().err
    assert error.endswith("\n")
    assert all(line.isprintable() for line in error.splitlines())


def test_a_terminal_that_takes_ascii_alone(folder: Path, monkeypatch: pytest.MonkeyPatch):
    out = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    monkeypatch.setattr("sys.stdout", out)
    line = "eval compare real fake --metrics psnr --max-unreadable 0.2"
    assert main(line.split()) == 0
    out.flush()
    written = out.buffer.getvalue().decode("ascii")  # pyright: ignore[reportAttributeAccessIssue]
    assert "PSNR" in written
    assert r"\u2013" in written


def test_prompts_meet_clips_in_counting_order(folder: Path):
    Path("made").mkdir()
    for index in (10, 2, 0, 1, 9):
        np.save(f"made/video_{index}.npy", np.full((3, 16, 16, 3), index, np.uint8))
    Path("five.txt").write_text("zero\none\ntwo\nnine\nten\n")
    line = "eval generation --clips made --prompts five.txt --metrics temporal_flickering --json r.json"
    assert main(line.split()) == 0
    clips = json.loads(Path("r.json").read_text())["clips"]
    wanted = {0: "zero", 1: "one", 2: "two", 9: "nine", 10: "ten"}
    found = [(clip["name"], clip["prompt"]) for clip in clips]
    assert found == [(f"video_{index}", word) for index, word in wanted.items()]
