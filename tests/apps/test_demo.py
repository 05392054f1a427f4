"""What `make demo` runs."""

import os
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from kinema.apps.demo import FIRST_FRAME, PROMPTS, main
from kinema.video import read_image, read_video


def test_demo(pipeline: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    monkeypatch.setattr("kinema.apps.demo.load_pipeline", lambda *_: pipeline)
    picture = torch.full((16, 16, 3), 200, dtype=torch.uint8)
    Image.fromarray(picture.numpy()).save(tmp_path / "first.png")
    monkeypatch.setattr("kinema.apps.demo.FIRST_FRAME", tmp_path / "first.png")
    out = tmp_path / "demo"
    assert main(["--out-dir", str(out)]) == 0
    names = sorted(os.listdir(out))
    assert len(names) == 6
    assert "contact_sheet.png" in names
    clips = [name for name in names if name.endswith(".mp4")]
    assert all(read_video(out / name).frames.shape == (5, 16, 16, 3) for name in clips)
    printed = capsys.readouterr().out
    assert all(name in printed for name in names)
    assert printed.count(" s, from ") == 5
    assert [call["prompt"] for call in pipeline.calls][:4] == list(PROMPTS)

    assert main(["--out-dir", str(out)]) == 2
    assert "--overwrite" in capsys.readouterr().err
    assert len(pipeline.calls) == 5
    assert main(["--out-dir", str(out), "--overwrite"]) == 0


def test_first_frame_is_there():
    assert read_image(FIRST_FRAME).shape == (128, 128, 3)
