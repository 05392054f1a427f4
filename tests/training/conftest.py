"""What the tests of training share: tiny videos, tiny models, a fresh accelerator for each test."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
import torch
from accelerate.state import AcceleratorState, GradientState, PartialState

from kinema.stopping import StopRequest
from kinema.tokenizers.causal_vae.model import CausalVideoTokenizer
from kinema.tokenizers.causal_vae.presets import TINY
from kinema.training import loop
from kinema.video import write_video


@pytest.fixture(autouse=True)
def fresh_accelerator() -> Iterator[None]:
    """accelerate keeps its state for the whole process; each test starts without."""
    for state in (AcceleratorState, GradientState, PartialState):
        state._reset_state()
    yield
    for state in (AcceleratorState, GradientState, PartialState):
        state._reset_state()


class StopAfter(StopRequest):
    """As if asked to stop after some steps, but by no signal."""

    def __init__(self, num_steps: int) -> None:
        super().__init__()
        self.steps_left = num_steps

    def __call__(self) -> bool:
        self.steps_left -= 1
        return self.steps_left < 0


@pytest.fixture
def stop_after(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], AbstractContextManager[None]]:
    """`with stop_after(k):` trainings within stop as if they were asked to after k steps."""

    @contextmanager
    def stopping(num_steps: int) -> Iterator[None]:
        with monkeypatch.context() as patch:
            patch.setattr(loop, "stop_signals", lambda: nullcontext(StopAfter(num_steps)))
            yield

    return stopping


@pytest.fixture
def make_video() -> Callable[..., Path]:
    """Writes a video of moving bars, frame k brighter than frame k - 1."""

    def make(path: Path, num_frames: int = 12, height: int = 40, width: int = 56, fps: float = 8) -> Path:
        path.parent.mkdir(parents=True, exist_ok=True)
        x = torch.arange(width).view(1, 1, width, 1) * 3
        t = torch.arange(num_frames).view(-1, 1, 1, 1) * 8
        frames = (x + t).expand(num_frames, height, width, 3).remainder(256).to(torch.uint8)
        write_video(path, frames, fps=fps, lossless=True)
        return path

    return make


@pytest.fixture
def make_timed_video() -> Callable[[Path, list[int]], Path]:
    """Writes a video whose frames are shown at these milliseconds, frame k of grey 10 * k."""

    def make(path: Path, times: list[int]) -> Path:
        path.parent.mkdir(parents=True, exist_ok=True)
        with av.open(str(path), "w") as container:
            stream: Any = container.add_stream("libx264rgb", rate=1000, options={"qp": "0", "bf": "0"})
            stream.height, stream.width, stream.pix_fmt = 16, 16, "rgb24"
            stream.time_base = stream.codec_context.time_base = Fraction(1, 1000)
            for index, time in enumerate(times):
                frame: Any = av.VideoFrame.from_ndarray(np.full((16, 16, 3), 10 * index, np.uint8), format="rgb24")
                frame.pts, frame.time_base = time, stream.time_base
                container.mux(stream.encode(frame))
            container.mux(stream.encode())
        return path

    return make


@pytest.fixture(scope="session")
def tiny_tokenizer_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A saved tokenizer with random weights and statistics that are not trivial."""
    torch.manual_seed(0)
    tokenizer = CausalVideoTokenizer(**TINY)
    z = tokenizer.latent_channels
    tokenizer.set_latent_statistics(torch.linspace(-0.5, 0.5, z), torch.linspace(0.5, 2, z))
    folder = tmp_path_factory.mktemp("tokenizer")
    tokenizer.save_pretrained(folder)
    return folder
