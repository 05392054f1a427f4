"""`kinema eval generation` and `kinema eval suite` where something is missing: it is said, and the rest is measured."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from kinema.apps.cli import main
from kinema.errors import KinemaError
from kinema.eval.networks.i3d import I3D
from kinema.tokenizers.causal_vae.model import CausalVideoTokenizer
from kinema.tokenizers.causal_vae.presets import TINY

PROTOCOL = "protocol styleganv: windows of 16 frames with stride 1, 1 a video, position random, seed 0;"
STREAM = ("stream_t", "stream_f", "stream_d")


class TinyI3D(I3D):
    """In place of I3D: random projections of coarse pixels."""

    num_features = 20

    def __init__(self) -> None:
        nn.Module.__init__(self)
        self.register_buffer("weights", torch.randn(192, 20, generator=torch.Generator().manual_seed(7)))

    def forward(self, video: Tensor) -> Tensor:
        return nn.functional.adaptive_avg_pool3d(video, (1, 8, 8)).flatten(1) @ self.get_buffer("weights")


class MeanColours(nn.Module):
    """In place of EfficientNet: the mean of each colour; remembers how many pictures it saw, and of which sizes."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[tuple[int, ...]] = []

    def forward(self, images: Tensor) -> Tensor:
        self.seen += [tuple(image.shape[1:]) for image in images]
        return images.float().mean(dim=(2, 3)) - 127


@pytest.fixture
def frame_network(monkeypatch: pytest.MonkeyPatch) -> MeanColours:
    network = MeanColours()
    monkeypatch.setattr("kinema.eval.generation.looks.load_frame_network", lambda *_: network)
    monkeypatch.setattr("kinema.eval.fvd.features.load_i3d", lambda _: TinyI3D())
    return network


def noise(seed: int, frames: int, side: int = 16) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (frames, side, side, 3), np.uint8)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, frame_network: MeanColours, pipeline: Any) -> Path:
    """Six real clips of 20 frames, six made ones of 16, and a prompt for each."""
    for name, frames in (("real", 20), ("made", 16)):
        (tmp_path / name).mkdir()
        for index in range(6):
            np.save(tmp_path / name / f"{index}.npy", noise(index, frames))
    (tmp_path / "prompts.txt").write_text("".join(f"a clip number {index}\n" for index in range(6)))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def run(line: str) -> int:
    return main(line.split())


def figures() -> dict[str, Any]:
    return json.loads(Path("r.json").read_text())


MADE = "eval generation --clips made --prompts prompts.txt --reference real --json r.json"


def test_stream_looks_at_the_needed_frames_of_fitted_clips(folder: Path, frame_network: MeanColours):
    line = f"{MADE} --metrics stream_t --reference-stride 2 --reference-resolution 8 --stream-frames 10"
    assert run(line) == 0
    assert frame_network.seen == 60 * [(8, 8)] + 60 * [(16, 16)]
    assert figures()["reference"] == {"stride": 2, "resolution": 8}
    # As if the clips were so in their files.
    Path("fitted").mkdir()
    for index in range(6):
        pixels = torch.from_numpy(noise(index, 20)[::2][:10])
        from kinema.training.data.resize import cover_frame

        np.save(f"fitted/{index}.npy", torch.stack([cover_frame(frame, 8, 8) for frame in pixels]).numpy())
    wanted = figures()["stream_t"]
    assert run(f"{MADE} --metrics stream_t --stream-frames 10 --overwrite".replace("real", "fitted")) == 0
    assert figures()["stream_t"] == wanted


def test_fvd_of_generated_clips_is_printed_with_its_protocol(folder: Path, capsys: pytest.CaptureFixture[str]):
    assert run(f"{MADE} --metrics temporal_flickering frame_consistency --fvd styleganv --html r.html") == 0
    out = capsys.readouterr().out
    assert f"FVD {figures()['fvd']:.2f}" in out
    assert PROTOCOL in out
    assert "note: 6 clips are fewer than 400" in out
    assert "VBench subject_consistency" in out
    page = Path("r.html").read_text()
    for wanted in ("subject_consistency", "DINO ViT-B/16", "efficientnet-lite0", "temporal_flickering"):
        assert wanted in page
    assert "background_consistency" not in page
    assert figures()["vbench"].keys() == {"subject_consistency", "temporal_flickering"}


def test_too_few_clips_for_stream_show_before_the_work(folder: Path, capsys: pytest.CaptureFixture[str], pipeline: Any):
    Path("real/5.npy").unlink()
    line = "eval generation --model m --prompts prompts.txt --reference real --num-frames 16 --json r.json"
    assert run(f"{line} --metrics stream_t") == 2
    assert "`reference` (=5 clips) must be at least 6 clips, for the metric 'stream_t'" in capsys.readouterr().err
    assert not pipeline.calls
    np.save("real/5.npy", noise(5, 20))
    assert run(f"{line} --metrics stream_t".replace("16", "15")) == 2
    assert "`num_frames` (=15) must be at least 16" in capsys.readouterr().err
    assert not pipeline.calls


def test_too_few_frames_for_fvd_show_before_the_work(folder: Path, capsys: pytest.CaptureFixture[str], pipeline: Any):
    line = "eval generation --model m --prompts prompts.txt --reference real --num-frames 15 --fvd styleganv"
    assert run(f"{line} --metrics temporal_flickering") == 2
    assert "`--num-frames` (=15) must be at least 16 for `--fvd styleganv`" in capsys.readouterr().err
    assert not pipeline.calls


def test_stream_that_was_not_asked_for_is_left_out_with_a_note(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("kinema.eval.generation.DEFAULT_METRICS", ("temporal_flickering",))
    Path("real/5.npy").unlink()
    assert run(f"{MADE} --html r.html") == 0
    found = figures()
    assert not set(STREAM) & found.keys()
    assert found["not_measured"] == dict.fromkeys(STREAM, "`reference` (=5 clips) must be at least 6 clips")
    assert "not measured: stream_t: `reference` (=5 clips)" in capsys.readouterr().out
    assert "Not measured: stream_t: `reference` (=5 clips)" in Path("r.html").read_text()


def test_unreadable_clips_leave_too_few_for_stream(folder: Path):
    Path("real/5.npy").write_bytes(b"broken")
    assert run(f"{MADE} --metrics temporal_flickering stream_t --max-unreadable 0.2") == 0
    found = figures()
    assert found["stream_t"] is None
    assert found["not_measured"] == {"stream_t": "`reference` (=5 clips) must be at least 6 clips"}
    assert found["temporal_flickering"] > 0
    assert list(found["unreadable"]) == ["reference/5"]


def test_a_first_clip_that_cannot_be_read_is_skipped(folder: Path):
    Path("made/0.npy").unlink()
    Path("made/0.mp4").write_bytes(b"broken")
    assert run(f"{MADE} --metrics temporal_flickering --max-unreadable 0.2") == 0
    assert list(figures()["unreadable"]) == ["0"]
    assert figures()["num_clips"] == 5


def test_clips_are_not_written_among_the_real_ones(folder: Path, capsys: pytest.CaptureFixture[str]):
    assert run("eval generation --model m --prompts prompts.txt --reference real --out-dir real --overwrite") == 2
    assert "`--out-dir` (='real') must be another file than `--reference`" in capsys.readouterr().err


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("tokenizer")
    CausalVideoTokenizer(**TINY).save_pretrained(path)
    return path


@pytest.fixture
def suite(tokenizer: Path, folder: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """The suite on frames that all metrics here can take; no weights but those that are in place."""

    def fetch(name: str, *_: Any) -> Path:
        if name not in ("i3d", "efficientnet-lite0"):
            raise KinemaError(f"no weights `{name}`")
        return Path(name)

    monkeypatch.setattr("kinema.eval.weights.fetch_weights", fetch)
    for index in range(6):
        np.save(f"real/{index}.npy", noise(index, 20, 32))
    line = f"eval suite --data real --tokenizer {tokenizer} --prompts prompts.txt --model m --resolution 32"
    return f"{line} --json r.json --html r.html --overwrite"


def test_the_suite_leaves_out_what_needs_more_frames(suite: str, capsys: pytest.CaptureFixture[str]):
    assert run(f"{suite} --num-frames 17") == 0
    found = figures()
    assert {"psnr", "rfvd"} <= found["reconstruction"].keys()
    assert {"fvd", *STREAM} <= found["generation"].keys()
    assert capsys.readouterr().out.count(PROTOCOL) == 2
    assert run(f"{suite} --num-frames 9") == 0
    found = figures()
    assert found["reconstruction"]["psnr"] > 3
    assert found["generation"]["temporal_flickering"] > 0
    reason = "`num_frames` (=9) must be at least 16"
    assert found["reconstruction"]["not_measured"]["rfvd"].startswith(reason)
    for name in ("fvd", *STREAM):
        assert found["generation"]["not_measured"][name].startswith(reason)
        assert name not in found["generation"]
    assert "rfvd" not in found["reconstruction"]
    out = capsys.readouterr().out
    for name in ("rfvd", "fvd", *STREAM):
        assert f"not measured: {name}: {reason}" in out
        assert f"Not measured: {name}: {reason}" in Path("r.html").read_text()


def test_the_suite_goes_on_without_what_some_clips_are_too_short_for(suite: str):
    np.save("real/3.npy", noise(3, 10, 32))
    assert run(f"{suite} --num-frames 17") == 0
    found = figures()
    assert "must have at least 16 frames" in found["reconstruction"]["not_measured"]["rfvd"]
    assert "must have at least 16 frames" in found["generation"]["not_measured"]["fvd"]
    assert "must have at least 16 frames" in found["generation"]["not_measured"]["stream_d"]
    assert found["generation"]["stream_d"] is None
    assert found["reconstruction"]["num_clips"] == 6
    assert found["generation"]["temporal_flickering"] > 0


def test_the_suite_goes_on_without_a_part(
    suite: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    def refuse(*_: Any, **__: Any) -> Any:
        raise KinemaError("this tokenizer cannot be loaded")

    monkeypatch.setattr("kinema.apps.loading.load_tokenizer", refuse)
    assert run(suite) == 0
    found = figures()
    assert found["reconstruction"] == {"not_measured": {"reconstruction": "this tokenizer cannot be loaded"}}
    assert found["generation"]["fvd"] > 0
    assert "not measured: reconstruction: this tokenizer cannot be loaded" in capsys.readouterr().out
    monkeypatch.setattr("kinema.apps.loading.load_pipeline", refuse)
    assert run(suite) == 2
    assert "this tokenizer cannot be loaded" in capsys.readouterr().err
