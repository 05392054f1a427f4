"""The page: it builds, and its button makes clips."""

import os
import warnings
from pathlib import Path
from typing import Any

import gradio as gr
import numpy as np
import pytest
from gradio_client import Client, handle_file
from gradio_client.exceptions import AppError
from PIL import Image

from kinema.apps.gradio_app import ClipMaker, build_app, vocabulary_hint
from kinema.images import read_image
from kinema.video import read_video


def test_page_has_fields_with_the_pipelines_defaults(pipeline: Any):
    page = build_app(pipeline)
    fields: dict[str, Any] = {getattr(block, "label", ""): block for block in page.blocks.values()}
    assert fields["Frames"].value == 5
    assert fields["Steps"].value == 20
    assert fields["Guidance scale"].value == 3.0
    assert {"Prompt", "First frame (optional)", "Seed", "Clip"} <= set(fields)


def test_programs_may_leave_out_all_but_the_prompt(pipeline: Any):
    information: Any = build_app(pipeline).get_api_info()
    parameters = {each["parameter_name"]: each for each in information["named_endpoints"]["/generate"]["parameters"]}
    assert list(parameters) == ["prompt", "image", "seed", "num_steps", "guidance_scale", "num_frames"]
    assert all(each["parameter_has_default"] for each in parameters.values())
    assert parameters["num_steps"]["parameter_default"] == 20


def test_page_lists_the_words_of_a_word_model(pipeline: Any):
    from kinema.generation.text import build_word_tokenizer

    pipeline.text_encoder = None
    pipeline.tokenizer = build_word_tokenizer(["car", "bus"])
    texts = [block.value for block in build_app(pipeline).blocks.values() if isinstance(block, gr.Markdown)]
    assert any("knows 2 words" in text and "bus, car" in text for text in texts)
    assert "free text" in vocabulary_hint(None)


def test_button_makes_a_clip(pipeline: Any, tmp_path: Path):
    make_clip = ClipMaker(pipeline)
    image = str(tmp_path / "first.png")
    Image.new("RGB", (16, 16), (200, 200, 200)).save(image)
    path = make_clip("a car", image, 3, 2, 1.5, 9)
    frames = read_video(path).frames
    assert frames.shape == (9, 16, 16, 3)
    assert abs(int(frames[0].float().mean()) - 200) <= 2
    assert pipeline.calls == [{"prompt": "a car", "seed": 3, "steps": 2}]
    assert make_clip("a car", None, 3, 2, 1.5, 9) != path
    folder = Path(path).parent
    del make_clip
    assert not folder.exists()


def test_mistake_is_shown_on_the_page(pipeline: Any):
    make_clip = ClipMaker(pipeline)
    with pytest.raises(gr.Error, match="prompt"):
        make_clip("  ", None, 0, 2, 1.5, 9)
    for seed in (None, -1):
        with pytest.raises(gr.Error, match="seed"):
            make_clip("a car", None, seed, 2, 1.5, 9)
    with pytest.raises(gr.Error, match="settings"):
        make_clip("a car", None, 0, 2, 1.5, None)


def test_unknown_words_are_shown_on_the_page(pipeline: Any, monkeypatch: pytest.MonkeyPatch):
    from kinema.generation.pipeline import PromptWarning

    def call(self: Any, *args: Any, **options: Any) -> Any:
        warnings.warn("unknown: 'carr'", PromptWarning, stacklevel=2)
        warnings.warn("something is deprecated", DeprecationWarning, stacklevel=2)
        return original(self, *args, **options)

    original = type(pipeline).__call__
    monkeypatch.setattr(type(pipeline), "__call__", call)
    shown: list[str] = []
    monkeypatch.setattr(gr, "Warning", shown.append)
    assert Path(ClipMaker(pipeline)("a carr", None, 0, 2, 1.5, 5)).name == "0000.mp4"
    assert shown == ["unknown: 'carr'"]


# gradio counts its errors with what pandas is about to drop.
ignore_pandas = pytest.mark.filterwarnings("ignore::DeprecationWarning")


@pytest.fixture
def client(pipeline: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """A program that uses the served page; files that it uploads lie in a folder of their own."""
    monkeypatch.setenv("GRADIO_TEMP_DIR", str(tmp_path / "uploads"))
    page = build_app(pipeline)
    _, address, _ = page.launch(prevent_thread_lock=True, quiet=True)
    client = Client(address, verbose=False, download_files=str(tmp_path / "downloads"))
    yield client
    client.close()
    page.close()


def first_levels(client: Client, image: Any) -> list[int]:
    path = client.predict("a car", image, api_name="/generate")
    return read_video(path["video"] if isinstance(path, dict) else path).frames[0].float().mean((0, 1)).round().tolist()


PICTURES = {
    "transparent": Image.new("RGBA", (16, 16), (0, 0, 0, 0)),
    "16 bits": Image.fromarray(np.full((16, 16), 0x8080, np.uint16)),
    "palette": Image.new("RGB", (16, 16), (90, 90, 90)).quantize(2),
}


def test_pictures_reach_the_pipeline_as_on_the_command_line(client: Client, tmp_path: Path):
    for name, picture in PICTURES.items():
        picture.save(tmp_path / f"{name}.png")
        expected = read_image(tmp_path / f"{name}.png").float().mean((0, 1)).tolist()
        np.testing.assert_allclose(first_levels(client, handle_file(str(tmp_path / f"{name}.png"))), expected, atol=2)


@ignore_pandas
def test_only_uploaded_files_are_opened(client: Client, tmp_path: Path, capfd: pytest.CaptureFixture[str]):
    outside, pipe = tmp_path / "outside.png", tmp_path / "pipe.png"
    PICTURES["transparent"].save(outside)
    os.mkfifo(pipe)
    for path in (str(outside), str(pipe), str(tmp_path / "uploads" / ".." / "outside.png"), "/etc/passwd", "", "a\0b"):
        with pytest.raises(AppError, match="uploaded to this page"):
            client.predict("a car", {"path": path}, api_name="/generate")
    with pytest.raises(AppError, match="uploaded to this page"):
        client.predict("a car", {"url": f"file://{outside}"}, api_name="/generate")
    assert "Traceback" not in capfd.readouterr().err


@ignore_pandas
def test_uploads_that_are_no_pictures_are_refused(client: Client, tmp_path: Path, capfd: pytest.CaptureFixture[str]):
    for name in ("note.png", "drawing.svg"):
        (tmp_path / name).write_text("<svg xmlns='http://www.w3.org/2000/svg'/>")
        with pytest.raises(AppError, match=f"`image` .*{name}.* must be a picture"):
            client.predict("a car", handle_file(str(tmp_path / name)), api_name="/generate")
    assert "Traceback" not in capfd.readouterr().err
