"""The page: whole, safe, and with nothing outside itself."""

import base64
import html.parser
import re
from pathlib import Path

import pytest
import torch

from kinema.errors import KinemaError
from kinema.eval.report import Figure, Report, Section, Table, number, plots
from kinema.eval.report.html import render, write_html
from kinema.eval.report.media import LONGEST_SIDE, MOST_FRAMES, difference, side_by_side
from kinema.video import read_video


class Tags(html.parser.HTMLParser):
    """Which elements are open, and what is referred to."""

    VOID = frozenset({"meta", "img", "link", "br"})

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.all: list[str] = []
        self.links: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.all.append(tag)
        self.links += [value or "" for name, value in attrs if name in ("src", "href", "poster")]
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def parsed(text: str) -> Tags:
    tags = Tags()
    tags.feed(text)
    assert not tags.open
    return tags


def whole_report() -> Report:
    clip = torch.zeros(3, 10, 12, 3, dtype=torch.uint8)
    return Report(
        title="A <title> & more",
        headline=[("FVD", 12.3456, "protocol"), ("PSNR", None, "")],
        notes=["few clips"],
        sections=[
            Section(
                title="First",
                text=["<script>alert(1)</script>"],
                tables=[Table(head=("clip", "value"), rows=[("<b>x</b>", 1.5), ("y", None)], caption="values")],
                figures=[
                    plots.curves("Curve", {"a": [1.0, None, 3.0], "b": [2.0, 2.0, 2.0]}, ylabel="dB", borders=[1]),
                    plots.histogram("Histogram", [1.0, 2.0, 2.5], xlabel="dB"),
                    plots.intervals("Intervals", {"FVD": (3.0, (2.0, 4.0)), "bias": (1.0, None)}, xlabel="FVD"),
                ],
                clips=[side_by_side([clip, clip], ["one", "two <i>"], "Both")],
            )
        ],
        command="kinema eval fvd 'a b' c",
    )


def test_the_page_is_well_formed_and_refers_to_nothing_outside():
    text = render(whole_report())
    tags = parsed(text)
    assert tags.all.count("img") == 3
    assert tags.all.count("video") == 1
    assert tags.links
    assert all(link.startswith("data:") for link in tags.links)
    assert not re.search(r"https?://|@import|url\(", text)


def test_names_and_prompts_are_text_and_never_markup():
    text = render(whole_report())
    assert "<script" not in text
    assert "&lt;b&gt;x&lt;/b&gt;" in text
    assert "A &lt;title&gt; &amp; more" in text
    assert "two &lt;i&gt;" in text


def test_figures_and_command_are_there():
    text = render(whole_report())
    for wanted in ("12.35", "few clips", "values", "kinema eval fvd &#39;a b&#39; c"):
        assert wanted in text


def test_an_empty_report_is_a_page():
    assert "h1" in parsed(render(Report(title="Nothing"))).all


@pytest.mark.parametrize(
    ("value", "wanted"),
    [
        (151.39253, "151.4"),
        (0.0123456, "0.01235"),
        (33.6541, "33.65"),
        (12345.67, "12,345.7"),
        (1234567, "1,234,567"),
        (0.0, "0"),
        (-2.5, "-2.500"),
        (None, "\N{EN DASH}"),
        (float("nan"), "\N{EN DASH}"),
        (float("inf"), "inf"),
        (True, "yes"),
        ("text", "text"),
    ],
)
def test_numbers_have_the_digits_that_mean_something(value: float | None, wanted: str):
    assert number(value) == wanted


def test_plots_are_reproducible_svg():
    one, other = (plots.curves("T", {"a": [1.0, 2.0]}, ylabel="dB") for _ in range(2))
    assert one == other
    content = base64.b64decode(one.uri.split(",", 1)[1])
    assert one.uri.startswith("data:image/svg+xml;base64,")
    assert b"<svg" in content
    assert isinstance(one, Figure)
    assert plots.curves("T", {"a": [1.0, 3.0]}, ylabel="dB") != one


def test_clips_side_by_side_are_one_video_in_step(tmp_path: Path):
    bright = torch.full((MOST_FRAMES + 9, 300, 400, 3), 200, dtype=torch.uint8)
    dark = torch.full((5, 31, 33, 3), 20, dtype=torch.uint8)
    clips = side_by_side([bright, dark], ["bright", "dark"], "Two", fps=6)
    (tmp_path / "c.mp4").write_bytes(base64.b64decode(clips.uri.split(",", 1)[1]))
    video = read_video(tmp_path / "c.mp4")
    assert video.fps == 6
    assert video.frames.shape[0] == MOST_FRAMES
    assert video.frames.shape[1] == 192  # 300x400 scaled to 192x256
    assert video.frames.shape[2] == clips.width
    assert clips.width == 2 * LONGEST_SIDE + 4  # columns of one width, over their labels
    assert (video.frames[-1, :190, :250].int() - 200).abs().max() <= 6
    small = video.frames[-1, 4:26, LONGEST_SIDE + 8 : LONGEST_SIDE + 30]
    assert (small.int() - 20).abs().max() <= 12  # the shorter clip keeps its last frame
    assert video.frames.shape[1] % 2 == video.frames.shape[2] % 2 == 0


def test_difference_is_grey_where_nothing_differs():
    a = torch.full((2, 4, 4, 3), 100, dtype=torch.uint8)
    b = a.clone()
    b[0, 0, 0] = torch.tensor([110, 90, 255], dtype=torch.uint8)
    shown = difference(a, b)
    assert (shown[1] == 128).all()
    assert shown[0, 0, 0].tolist() == [168, 88, 255]


def test_the_file_is_written_whole_and_never_by_accident(tmp_path: Path):
    path = tmp_path / "sub" / "r.html"
    write_html(Report(title="One"), path)
    with pytest.raises(KinemaError, match="--html"):
        write_html(Report(title="Two"), path)
    write_html(Report(title="Two"), path, overwrite=True)
    assert "<h1>Two</h1>" in path.read_text()
    assert [p.name for p in path.parent.iterdir()] == ["r.html"]
