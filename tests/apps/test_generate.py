"""`kinema generate`: what is asked for comes out, under the right names."""

import os
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from kinema.apps.cli import main
from kinema.apps.commands.generate import slug
from kinema.tokenizers.causal_vae.model import CausalVideoTokenizer
from kinema.tokenizers.causal_vae.presets import TINY
from kinema.video import read_video


@pytest.fixture(autouse=True)
def _in_tmp_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)


def test_one_prompt(pipeline: Any, capsys: pytest.CaptureFixture[str]):
    assert main(["generate", "A red car, driving!"]) == 0
    video = read_video("a-red-car-driving.mp4")
    assert video.frames.shape == (5, 16, 16, 3)
    assert video.fps == 8
    out = capsys.readouterr().out
    assert out.startswith("a-red-car-driving.mp4  5 frames of 16x16 in ")
    assert out.count("\n") == 1


def test_all_options_reach_the_pipeline(pipeline: Any):
    options = (
        "--num-frames 9 --height 24 --width 40 --num-steps 3 --guidance-scale 2.5 --seed 7 --fps 12 -o deep/er/x.mkv"
    )
    assert main(["generate", "a car", *options.split()]) == 0
    video = read_video("deep/er/x.mkv")
    assert video.frames.shape == (9, 24, 40, 3)
    assert video.fps == 12
    assert pipeline.calls == [{"prompt": "a car", "seed": 7, "steps": 3}]


def test_an_option_that_a_pipeline_does_not_take(pipeline: Any, capsys: pytest.CaptureFixture[str]):
    assert main(["generate", "car", "--guidance-interval", "0.2", "0.9", "-o", "x.mp4"]) == 2
    assert "`guidance_interval` must be left out: a FakePipeline takes none" in capsys.readouterr().err
    assert main(["generate", "car", "--guidance-interval", "0.9", "0.2", "-o", "x.mp4"]) == 2
    assert "`--guidance-interval` (=0.9 0.2) must be two rising numbers in [0, 1]" in capsys.readouterr().err
    assert pipeline.calls == []
    assert not Path("x.mp4").exists()


def test_lossless_and_image(pipeline: Any):
    picture = torch.arange(16 * 16 * 3).reshape(16, 16, 3).to(torch.uint8)
    Image.fromarray(picture.numpy()).save("first.png")
    assert main(["generate", "a car", "--image", "first.png", "--lossless", "-o", "x.mp4"]) == 0
    frames = read_video("x.mp4").frames
    assert torch.equal(frames[0], picture)
    assert frames[1:].unique().tolist() == [5 * 7]


def test_many_prompts(pipeline: Any):
    Path("prompts.txt").write_text("a car\n  a bus \na bee\n\n", encoding="utf-8-sig")
    assert main(["generate", "--prompts", "prompts.txt", "--out-dir", "out", "--seed", "4", "--contact-sheet"]) == 0
    names = [f"{number:04d}.{kind}" for number in range(3) for kind in ("mp4", "png")]
    assert sorted(os.listdir("out")) == names
    assert [(call["prompt"], call["seed"]) for call in pipeline.calls] == [("a car", 4), ("a bus", 5), ("a bee", 6)]


def test_line_of_a_file_is_the_clip_of_its_prompt_and_seed(pipeline: Any):
    Path("prompts.txt").write_text("a car\na bus")
    assert main(["generate", "--prompts", "prompts.txt", "--out-dir", "out", "--lossless"]) == 0
    assert main(["generate", "a bus", "--seed", "1", "--lossless", "-o", "one.mp4"]) == 0
    assert torch.equal(read_video("out/0001.mp4").frames, read_video("one.mp4").frames)


def test_contact_sheet_beside_the_clip(pipeline: Any):
    assert main(["generate", "a car", "-o", "x.mp4", "--contact-sheet"]) == 0
    with Image.open("x.png") as sheet:
        assert sheet.size[0] > 6 * 16


@pytest.mark.parametrize("existing", ["x.mp4", "x.png"])
def test_existing_file_is_found_before_any_work(pipeline: Any, existing: str):
    Path(existing).write_text("precious")
    argv = ["generate", "a car", "-o", "x.mp4", "--contact-sheet"]
    assert main(argv) == 2
    assert pipeline.calls == []
    assert Path(existing).read_text() == "precious"
    assert main([*argv, "--overwrite"]) == 0
    assert len(read_video("x.mp4").frames) == 5


def test_one_existing_file_of_many_stops_all(pipeline: Any):
    Path("prompts.txt").write_text("a car\na bus")
    Path("out").mkdir()
    Path("out/0001.mp4").write_text("precious")
    assert main(["generate", "--prompts", "prompts.txt", "--out-dir", "out"]) == 2
    assert pipeline.calls == []
    assert os.listdir("out") == ["0001.mp4"]


def test_what_the_pipeline_refuses_is_one_line(pipeline: Any, capsys: pytest.CaptureFixture[str]):
    assert main(["generate", "a car", "--height", "4"]) == 2
    assert capsys.readouterr().err == "kinema: error: `height` (=4) must be >= 8\n"
    assert os.listdir(".") == []


@pytest.mark.parametrize(
    ("prompt", "name"),
    [
        ("A red car!", "a-red-car"),
        ("../../etc/passwd", "etc-passwd"),
        ("\u96ea", "clip"),
        ("Un cafe\u0301 cr\u00e8me, 3\u00bd", "un-cafe-creme-3"),
        ("word " * 50, "-".join(["word"] * 12)),
    ],
)
def test_slug(prompt: str, name: str):
    assert slug(prompt) == name


def test_a_clip_beyond_the_memory_is_refused_before_the_work(
    pipeline: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    pipeline.vae = CausalVideoTokenizer(**TINY)  # of 8 channels at first
    needed = 16 * 24 * (8 * 45 + 9 * 27)
    argv = ["generate", "red", "-o", "a.mp4", "--num-frames", "9", "--width", "24"]
    monkeypatch.setattr("kinema.apps.memory.free_memory", lambda: needed - 1)
    assert main(argv) == 2
    assert capsys.readouterr().err.startswith("kinema: error: the clip must have smaller frames: 9x16x24 takes")
    assert not pipeline.calls
    monkeypatch.setattr("kinema.apps.memory.free_memory", lambda: needed)
    assert main(argv) == 0


def test_warnings_are_lines(pipeline: Any, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch):
    from kinema.generation.pipeline import PromptWarning

    def warn(self: Any, *args: Any, **options: Any) -> Any:
        warnings.warn("words that the model\ndoes not know: 'carr'", PromptWarning, stacklevel=2)
        warnings.warn("something is deprecated", DeprecationWarning, stacklevel=2)
        return original(self, *args, **options)

    original = type(pipeline).__call__
    monkeypatch.setattr(type(pipeline), "__call__", warn)
    assert main(["generate", "a carr", "-o", "x.mp4"]) == 0
    assert capsys.readouterr().err == "kinema: warning: words that the model does not know: 'carr'\n"
