"""The page: it builds, and its button makes clips."""

import warnings
from pathlib import Path
from typing import Any

import gradio as gr
import pytest
import torch

from kinema.apps.gradio_app import ClipMaker, build_app, vocabulary_hint
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


def test_button_makes_a_clip(pipeline: Any):
    make_clip = ClipMaker(pipeline)
    image = torch.full((16, 16, 3), 200, dtype=torch.uint8).numpy()
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
