"""A pipeline that is quick to make and easy to predict, in place of a trained one."""

from types import MappingProxyType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from kinema.errors import KinemaError


class FakePipeline:
    """Makes clips of one grey, chosen by prompt and seed; frame 0 is the image, where there is one."""

    text_encoder = object()
    tokenizer = None
    config = MappingProxyType(
        {
            "sample_size": (5, 16, 16),
            "sample_fps": 8.0,
            "sample_steps": 20,
            "sample_guidance_scale": 3.0,
            "sample_guidance_interval": (0.0, 1.0),
        }
    )

    def __init__(self):
        self.calls: list[dict[str, Any]] = []

    def set_progress_bar_config(self, **_: Any) -> None: ...

    def __call__(
        self,
        prompt: str,
        image: Any = None,
        num_frames: int = 5,
        height: int = 16,
        width: int = 16,
        num_inference_steps: int = 20,
        guidance_scale: float = 3.0,
        generator: torch.Generator | None = None,
        output_type: str = "pil",
    ) -> SimpleNamespace:
        assert generator is not None
        assert output_type == "pt"
        if height < 8:
            raise KinemaError(f"`height` (={height}) must be >= 8")
        self.calls.append({"prompt": prompt, "seed": generator.initial_seed(), "steps": num_inference_steps})
        grey = (len(prompt) * 7 + generator.initial_seed() * 31) % 256 / 255
        frames = torch.full((1, num_frames, 3, height, width), grey)
        if image is not None:
            frames[0, 0] = torch.from_numpy(np.array(image)).permute(2, 0, 1) / 255
        return SimpleNamespace(frames=frames)


@pytest.fixture
def pipeline(monkeypatch: pytest.MonkeyPatch) -> FakePipeline:
    fake = FakePipeline()
    monkeypatch.setattr("kinema.apps.loading.load_pipeline", lambda *_, **__: fake)
    return fake
