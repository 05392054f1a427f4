"""`kinema attention`: figures as text and JSON, a picture, the list of patterns, and mistakes."""

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import pytest
import torch
from PIL import Image
from torch import Tensor

from kinema.apps.cli import build_parser, main
from kinema.generation.attention import (
    PATTERNS,
    Grid,
    PatternSchedule,
    SlidingTile,
    StaticPattern,
    TokenOrder,
    parse_pattern,
)
from kinema.generation.attention.architectures import Architecture, architectures
from kinema.generation.attention.grid import tile_order
from kinema.generation.attention.layout import TokenMask
from kinema.generation.attention.plugin import TRANSFORMER_FAMILIES
from kinema.generation.attention.plugin.wan import Wan
from kinema.generation.attention.report import attention_report

GRID = "--grid 5x6x8"


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def attend(line: str) -> int:
    return main(["attention", *line.split()])


def test_report(folder: Path, capsys: pytest.CaptureFixture[str]):
    line = f"report {GRID} --pattern sliding-tile:3x1x1,tile=1x3x4 --model wan-14b --dense-layers 2 --dense-steps 3,1"
    assert attend(f"{line} --num-steps 20 --efficiency 0.8 --json new/r.json --picture new/p.png") == 0
    pattern = PatternSchedule((SlidingTile((1, 3, 4), (3, 1, 1)),), dense_layers=2, dense_steps=(3, 1))
    wanted = attention_report(pattern, Grid(5, 6, 8), "wan-14b", num_steps=20, efficiency=0.8)
    captured = capsys.readouterr()
    assert captured.out == f"{wanted.table()}\n"
    assert captured.err == ""
    assert json.loads((folder / "new" / "r.json").read_text()) == json.loads(json.dumps(wanted.as_dict()))
    assert wanted.density == 0.15  # 3 of 20 tiles
    with Image.open(folder / "new" / "p.png") as picture:
        assert picture.format == "PNG"
        assert len(picture.convert("RGB").getcolors(2**20) or []) > 20


def test_size_in_pixels(capsys: pytest.CaptureFixture[str]):
    assert attend("report --video 9x64x48 --pattern spatial") == 0
    by_pixels = capsys.readouterr().out
    assert "3x4x3 = 36 tokens" in by_pixels
    assert attend("report --grid 3x4x3 --pattern spatial") == 0
    assert capsys.readouterr().out == by_pixels


def test_patterns_are_listed(capsys: pytest.CaptureFixture[str]):
    assert attend("patterns") == 0
    *lines, empty, last = capsys.readouterr().out.splitlines()
    assert not empty
    assert "A*6&B*6" in last
    names = [line.partition(":")[0] for line in lines if not line.startswith(" ")]
    assert names == list(PATTERNS)
    assert "    Each token attends to its frame." in lines
    start = lines.index("sliding-tile:WINDOW")
    assert [line.split()[0] for line in lines[start + 2 : start + 4]] == ["window=3x3x3", "tile=2x8x8"]
    settings = [line for line in lines if line.startswith("      ")]
    assert all(len(line.split()) > 2 for line in settings), "each setting says what it means"
    # What is listed as a default is one.
    for line in settings:
        name, equals, value = line.split()[0].partition("=")
        if equals:
            owner = next(each for each in lines[lines.index(line) :: -1] if not each.startswith(" "))
            kind = PATTERNS[owner.partition(":")[0]][0]
            needed = "k=1," if kind.name == "tile-top-k" else ""
            pattern = parse_pattern(f"{kind.name}:{needed}{name}={value}")
            assert pattern == parse_pattern(f"{kind.name}:{needed}".rstrip(":,"))


def test_models_are_listed(capsys: pytest.CaptureFixture[str]):
    """By the error, not by the help: the table would import torch."""
    assert attend("report --help") == 0
    text = capsys.readouterr().out
    assert all(name in text and name in architectures() for name in ("wan-14b", "hunyuan-video"))
    assert attend("report --grid 1x1x1 --pattern full --model unknown") == 2
    assert f"must be one of {', '.join(architectures())}" in capsys.readouterr().err
    line = ["attention", "report", "--grid", "1", "--pattern", "full"]
    assert build_parser().parse_args(line).model in architectures()


@dataclass(frozen=True)
class Diagonal(StaticPattern):
    """Each token attends to itself.

    Args:
        gap: an unused setting.
    """

    name: ClassVar[str] = "diagonal"
    gap: int = 1

    def order(self, grid: Grid) -> TokenOrder:
        return tile_order(grid, (1, 1, 1))

    def sees(self, grid: Grid) -> TokenMask:
        return lambda head, query, key: query == key

    def tables(self, grid: Grid) -> tuple[Tensor, None]:
        return torch.eye(grid.num_tokens, dtype=torch.bool)[None], None


def test_a_pattern_is_added_by_one_line(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    monkeypatch.setitem(PATTERNS, Diagonal.name, (Diagonal, "gap"))
    assert attend("patterns") == 0
    lines = capsys.readouterr().out.splitlines()
    start = lines.index("diagonal:GAP")
    assert [line.split() for line in lines[start + 1 : start + 3]] == [
        ["Each", "token", "attends", "to", "itself."],
        ["gap=1", "an", "unused", "setting."],
    ]
    assert attend("report --grid 2x2x2 --pattern diagonal:3") == 0
    assert re.search(r"diagonal:3 +all +0\.1250", capsys.readouterr().out)
    assert attend("report --grid 2x2x2 --pattern nonsense") == 2
    assert "diagonal" in capsys.readouterr().err


def test_a_family_is_added_by_one_line(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    class Small(Wan):
        sizes: ClassVar[dict[str, Architecture]] = {"small": Architecture(64, 2, 4, 128, 8)}

    monkeypatch.setitem(TRANSFORMER_FAMILIES, "SmallTransformer", Small())
    assert attend("report --grid 2x2x2 --pattern full --model small") == 0
    assert "small: 2 layers, 4 heads" in capsys.readouterr().out


MISTAKES = {
    "": "ACTION",
    "report": "--pattern",
    "report --pattern full": "--grid",
    f"report {GRID}": "--pattern",
    f"report {GRID} --video 5x64x64 --pattern full": "--video",
    "report --grid 5x6 --pattern full": "`grid` (=5x6)",
    "report --grid 5x0x6 --pattern full": "`grid.h` (=0)",
    "report --grid 99x9999x9999 --pattern full": "`grid` (=99x9999x9999)",
    "report --video 5x64 --pattern full": "`--video` (=5x64)",
    "report --video 0x64x64 --pattern full": "`num_frames` (=0)",
    "report --video 5x64x64 --pattern full --model tiny": "`--grid`",
    f"report {GRID} --pattern nonsense": "`pattern` (=nonsense)",
    f"report {GRID} --pattern sliding-tile:2x2x2": "`window` (=(2, 2, 2))",
    f"report {GRID} --pattern sliding-tile:1x1x1/3x3x3": "`pattern` (=sliding-tile:1x1x1/3x3x3) is for 2",
    f"report {GRID} --pattern full --model nonsense": "`model` (='nonsense')",
    f"report {GRID} --pattern full --dense-layers -1": "`--dense-layers` (=-1)",
    f"report {GRID} --pattern full --dense-layers 31": "`dense_layers` (=31)",
    f"report {GRID} --pattern full --dense-steps x": "`--dense-steps` (='x')",
    f"report {GRID} --pattern full --dense-steps 1,2,3": "`--dense-steps` (='1,2,3')",
    f"report {GRID} --pattern full --dense-steps 51": "`dense_steps` (=(51, 0))",
    f"report {GRID} --pattern full --num-steps 0": "`--num-steps` (=0)",
    f"report {GRID} --pattern full --efficiency 0": "`efficiency` (=0)",
    f"report {GRID} --pattern full --efficiency inf": "`efficiency` (=inf)",
    f"report {GRID} --pattern full --picture new.jpg": "`--picture` (='new.jpg')",
    f"report {GRID} --pattern full --picture old.png": "`--picture` (='old.png')",
    f"report {GRID} --pattern full --json old.png": "`--json` (='old.png')",
    f"report {GRID} --pattern full --json new.png --picture new.png": "`--json` (='new.png')",
    "patterns --bogus": "--bogus",
}


@pytest.mark.parametrize("line", MISTAKES)
def test_mistake_is_one_line_and_status_2(line: str, folder: Path, capfd: pytest.CaptureFixture[str]):
    (folder / "old.png").write_text("old")
    assert attend(line) == 2
    captured = capfd.readouterr()
    assert captured.err.startswith("kinema: error: ")
    assert captured.err.count("\n") == 1
    assert MISTAKES[line] in captured.err
    assert captured.out == ""
    assert [path.name for path in folder.iterdir()] == ["old.png"]
    assert (folder / "old.png").read_text() == "old"


def test_files_are_replaced_on_request(folder: Path):
    (folder / "old.png").write_text("old")
    assert attend(f"report {GRID} --pattern full --picture old.png --overwrite") == 0
    assert (folder / "old.png").read_bytes().startswith(b"\x89PNG")
