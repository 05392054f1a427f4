"""`evaluate_generation`: what it adds up, what it says of the networks, and what it refuses. Networks are stand-ins."""

import json
import os
import subprocess
import sys
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from kinema.errors import KinemaError
from kinema.eval.generation import DEFAULT_METRICS, METRICS, evaluate_generation
from kinema.eval.generation.looks import Networks
from kinema.eval.motion.frame_networks import CLIPFrameNetwork
from kinema.eval.motion.stream import STREAM, StreamOfLooks
from kinema.eval.motion.temporal_flickering import temporal_flickering
from kinema.eval.report import Report
from kinema.eval.report.html import render
from kinema.eval.report.sections import generation_section
from kinema.eval.text.clip import CLIPEncoder
from kinema.eval.text.frame_consistency import frame_consistency
from kinema.eval.vbench import VBENCH, vbench_scores
from kinema.eval.weights import find_weights


class MeanColours(nn.Module):
    """A frame network: the mean of each colour."""

    def __init__(self) -> None:
        super().__init__()
        self.num_images = 0

    def forward(self, images: Tensor) -> Tensor:
        self.num_images += len(images)
        return images.float().mean(dim=(2, 3)) - 127


class NoFlow(nn.Module):
    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        return torch.zeros(len(a), 2, *a.shape[2:])


class ColourCLIP(CLIPEncoder):
    """A CLIP that knows colours: a picture is its mean colour, a prompt one of three names."""

    def __init__(self) -> None:
        self.name = "colours"

    def image_features(self, images: Tensor) -> Tensor:
        return nn.functional.normalize(images.float().mean(dim=(2, 3)), dim=-1)

    def text_features(self, texts) -> Tensor:
        return torch.eye(3)[[["red", "green", "blue"].index(text) for text in texts]]


def make_clips(count: int, *, num_frames: int = 5, seed: int = 0) -> list[tuple[str, Tensor]]:
    generator = torch.Generator().manual_seed(seed)
    return [
        (f"{i:02}", torch.randint(0, 256, (num_frames, 8, 8, 3), dtype=torch.uint8, generator=generator))
        for i in range(count)
    ]


def with_prompts(clips: list[tuple[str, Tensor]], prompt: str = "red") -> list[tuple[str, Tensor, str]]:
    return [(name, frames, prompt) for name, frames in clips]


def test_all_metrics_of_known_clips():
    red, blue = torch.zeros(5, 8, 8, 3, dtype=torch.uint8), torch.zeros(5, 8, 8, 3, dtype=torch.uint8)
    red[..., 0] = blue[..., 2] = 255
    clips = [("b", blue, "red"), ("a", red, "red")]
    networks = Networks(clip=ColourCLIP(), flow=NoFlow())
    report = evaluate_generation(clips, ("clip_score", *DEFAULT_METRICS), networks=networks)
    assert report.metrics == pytest.approx(
        {
            "clip_score": 50,
            "frame_consistency": 1,
            "dynamic_degree": 0,
            "motion_smoothness": 1,
            "temporal_flickering": 1,
        }
    )
    assert [(clip.name, clip.prompt, clip.metrics["clip_score"]) for clip in report.clips] == [
        ("a", "red", 100),
        ("b", "red", 0),
    ]
    assert report.curves["clip_score"] == [50] * 5
    assert report.curves["temporal_flickering"] == [None, 1, 1, 1, 1]
    assert report.curves["motion_smoothness"] == [None, 1, None, 1, None]
    assert report.protocol["networks"] == {"clip": "colours", "frame_consistency": "colours", "flow": "NoFlow"}
    assert report.protocol["fps"] == 8
    assert "stream_frames" not in report.protocol
    assert report.num_frames == 10


def test_stream_and_frame_consistency_are_those_of_the_frame_network():
    fake, real = make_clips(7, num_frames=9), make_clips(6, num_frames=8, seed=1)
    network = MeanColours()
    metrics = ("stream_t", "stream_d", "frame_consistency")
    report = evaluate_generation(
        with_prompts(fake), metrics, reference=real, frame_network=network, clip=ColourCLIP(), stream_frames=8
    )
    assert network.num_images == 7 * 9 + 6 * 8  # every frame once, for all metrics

    def features(clips: list[tuple[str, Tensor]]) -> Tensor:
        return torch.stack([MeanColours()(frames.permute(0, 3, 1, 2)) for _, frames in clips])

    stream = STREAM(num_frames=8)
    stream.update(features(fake)[:, :8], real=False)
    stream.update(features(real), real=True)
    expected = stream.compute()
    assert report.metrics["stream_t"] == pytest.approx(expected["stream_t"])
    assert report.metrics["stream_d"] == pytest.approx(expected["stream_d"])
    assert report.metrics["frame_consistency"] == pytest.approx(
        float(frame_consistency(features(fake)).nanmean()), abs=1e-6
    )
    assert list(report.metrics) == list(metrics)
    assert report.num_reference == 6
    assert report.protocol["networks"]["frame_consistency"] == "MeanColours"
    assert report.protocol["stream_frames"] == 8


def test_clips_count_alike_and_curves_go_as_far_as_clips_do():
    clips = [*make_clips(1, num_frames=3), ("longer", make_clips(1, num_frames=6, seed=2)[0][1])]
    seen = []
    report = evaluate_generation(
        with_prompts(clips), ["temporal_flickering"], watch=lambda name, frames, prompt: seen.append((name, prompt))
    )
    curves = [temporal_flickering(frames.permute(3, 0, 1, 2)[None])[0] for _, frames in clips]
    expected = sum(float(curve.nanmean()) for curve in curves) / 2
    assert report.metrics["temporal_flickering"] == pytest.approx(expected)
    curve = report.curves["temporal_flickering"]
    assert curve[0] is None
    assert curve[1:] == pytest.approx(
        [float((curves[0][i] + curves[1][i]) / 2) if i < 3 else float(curves[1][i]) for i in range(1, 6)]
    )
    assert seen == [("00", "red"), ("longer", "red")]


def test_the_report_is_json():
    report = evaluate_generation(
        with_prompts(make_clips(2)), ["temporal_flickering", "motion_smoothness"], flow=NoFlow()
    )
    values = json.loads(json.dumps(report.as_dict(), allow_nan=False))
    assert values["temporal_flickering"] == report.metrics["temporal_flickering"]
    assert values["vbench"]["temporal_flickering"] == pytest.approx(values["temporal_flickering"])
    assert values["num_clips"] == 2
    assert values["clips"][0]["prompt"] == "red"
    assert values["clips"][0]["curves"]["motion_smoothness"][0] is None


@pytest.mark.parametrize(
    ("clips", "metrics", "options", "message"),
    [
        ([], ["temporal_flickering"], {}, r"`clips` \(=0 of them\)"),
        (make_clips(1), [], {}, r"`metrics` \(=\[\]\) must be at least one"),
        (make_clips(1), ["fvd"], {}, r"`metrics` \(='fvd'\) must be one of clip_score"),
        (make_clips(1), ["temporal_flickering"] * 2, {}, "every metric once"),
        (make_clips(1), ["clip_score"], {}, r"`clip` \(=None\) must name a CLIP"),
        (make_clips(6), ["stream_f"], {"frame_network": MeanColours()}, r"`reference` \(=None\)"),
        (make_clips(1, num_frames=1), ["temporal_flickering"], {}, r"clip '00': `clip` \(of 1 frames\)"),
        (make_clips(1, num_frames=0), ["temporal_flickering"], {}, r"clip '00': `clip` \(=0 frames\)"),
        (
            make_clips(6),
            ["stream_t"],
            {"frame_network": MeanColours(), "reference": make_clips(6)},
            r"clip '00': `clip` \(of 5 frames\) must have at least 16 frames",
        ),
        (
            make_clips(5),
            ["stream_t"],
            {"frame_network": MeanColours(), "reference": make_clips(6), "stream_frames": 5},
            r"`clips` \(=5 clips\) must be at least 6 clips, for the metric 'stream_t'",
        ),
        (make_clips(1), ["dynamic_degree"], {"flow": NoFlow(), "fps": 0.0}, r"`fps` \(=0.0\) must be above 0"),
        (make_clips(1), ["temporal_flickering"], {"networks": Networks(), "fps": 8.0}, "`networks` must not be given"),
    ],
)
def test_bad_input_is_refused(clips, metrics, options, message: str):
    with pytest.raises(KinemaError, match=message):
        evaluate_generation(with_prompts(clips), metrics, **options)


def test_mistakes_show_before_the_first_clip():
    def clips():
        raise AssertionError("a clip was asked for")
        yield

    with pytest.raises(KinemaError, match="`frame_network`"):
        evaluate_generation(clips(), ["frame_consistency"], frame_network="no/such")


@pytest.mark.parametrize("name", METRICS)
def test_every_row_of_the_table_has_a_maker(name: str):
    assert callable(METRICS[name].make)
    assert all(hasattr(Networks(), setting) for setting in METRICS[name].settings)


def test_vbench_names():
    metrics = {"clip_score": 25.0, "frame_consistency": 0.9, "dynamic_degree": None, "stream_t": 0.5}
    (score,) = vbench_scores(metrics)
    assert (score.name, score.value, score.same_network) == ("overall_consistency", 0.25, False)
    for name in ("subject_consistency", "background_consistency"):
        for network in (VBENCH[name].identity, "another"):
            networks = {"frame_consistency": str(network), "clip": "x"}
            score, _ = vbench_scores(metrics, consistency=name, networks=networks)
            assert (score.name, score.value, score.network) == (name, 0.9, network)
            assert score.same_network == (network != "another")
    assert {dimension.metric for dimension in VBENCH.values()} <= set(METRICS)


def test_frame_consistency_is_one_dimension_of_vbench():
    """The subject's by a network of pictures, the background's by a CLIP; never both, and the report says by which."""

    class PicturesOfCLIP(CLIPFrameNetwork, MeanColours):
        def __init__(self) -> None:
            MeanColours.__init__(self)

        def forward(self, images: Tensor) -> Tensor:
            return MeanColours.forward(self, images)

    cases: list[tuple[dict[str, Any], str, str]] = [
        ({"frame_network": MeanColours()}, "subject_consistency", "MeanColours"),
        ({"frame_network": MeanColours(), "clip": ColourCLIP()}, "subject_consistency", "MeanColours"),
        ({"clip": ColourCLIP()}, "background_consistency", "colours"),
        ({"frame_network": PicturesOfCLIP()}, "background_consistency", "PicturesOfCLIP"),
    ]
    for options, wanted, network in cases:
        report = evaluate_generation(with_prompts(make_clips(2)), ["frame_consistency"], **options)
        values = report.as_dict()
        assert values["vbench"] == {wanted: report.metrics["frame_consistency"]}
        assert values["vbench_details"][wanted]["network"] == network
        assert values["vbench_details"][wanted]["same_network"] is False
        page = render(Report(title="Page", sections=[generation_section(report)]))
        assert wanted in page
        assert VBENCH[wanted].network in page
        assert ({"subject_consistency", "background_consistency"} - {wanted}).pop() not in page


def test_only_the_frames_that_are_looked_at_go_through_the_network():
    network = MeanColours()
    clips, reference = make_clips(7, num_frames=9), make_clips(6, num_frames=30, seed=1)
    evaluate_generation(with_prompts(clips), ["stream_t"], reference=reference, frame_network=network, stream_frames=8)
    assert network.num_images == (7 + 6) * 8


@pytest.mark.parametrize("few", ["clips", "reference"])
def test_too_few_clips_for_stream_are_said_at_the_end_where_they_could_not_be_before(few: str):
    clips, reference = make_clips(5 if few == "clips" else 6), make_clips(5 if few == "reference" else 6, seed=1)
    report = evaluate_generation(
        iter(with_prompts(clips)),
        ["stream_t", "temporal_flickering", "stream_f"],
        reference=iter(reference),
        frame_network=MeanColours(),
        stream_frames=5,
    )
    assert report.metrics["stream_t"] is report.metrics["stream_f"] is None
    assert report.metrics["temporal_flickering"] is not None
    assert report.not_measured == dict.fromkeys(
        ("stream_t", "stream_f"), f"`{few}` (=5 clips) must be at least 6 clips"
    )
    assert report.as_dict()["not_measured"] == report.not_measured


def test_a_short_reference_clip_shows_before_the_first_clip_is_made():
    def clips():
        raise AssertionError("a clip was asked for")
        yield

    with pytest.raises(KinemaError, match=r"clip '00': `clip` \(of 5 frames\) must have at least 16 frames"):
        evaluate_generation(clips(), ["stream_t"], reference=make_clips(6), frame_network=MeanColours())


def test_lenient_measures_leave_out_what_a_clip_is_too_short_for():
    reference = [*make_clips(6, num_frames=8), ("short", make_clips(1)[0][1])]
    report = evaluate_generation(
        with_prompts(make_clips(6, num_frames=8)),
        ["stream_t", "temporal_flickering"],
        reference=reference,
        frame_network=MeanColours(),
        stream_frames=8,
        lenient=True,
    )
    assert report.metrics["stream_t"] is None
    assert report.metrics["temporal_flickering"] is not None
    assert report.not_measured["stream_t"].startswith("clip 'short': `clip` (of 5 frames) must have at least 8 frames")


@pytest.mark.parametrize(("device", "place"), [("cuda", "cuda"), ("cpu", "cpu"), ("mps", "cpu")])
def test_stream_keeps_its_state_where_processes_exchange_it(device: str, place: str, monkeypatch: pytest.MonkeyPatch):
    moved = []
    monkeypatch.setattr(Networks, "frames", True)
    monkeypatch.setattr(STREAM, "to", lambda self, to: moved.append(str(to)) or self)
    StreamOfLooks(Networks(device=device))
    assert moved == [place]


def test_the_table_imports_no_torch():
    code = "import sys, kinema.eval.generation, kinema.eval.vbench; sys.exit('torch' in sys.modules)"
    environment = {**os.environ, "PYTHONPATH": "src"}
    assert subprocess.run([sys.executable, "-c", code], env=environment).returncode == 0


@pytest.mark.slow
def test_with_the_networks_themselves():
    for name in ("raft", "efficientnet-lite0"):
        if find_weights(name) is None:
            pytest.skip(f"no weights of {name} in the cache: `kinema weights fetch {name}`")
    colours = torch.rand(6, 1, 3, 8, 8)
    clips = []
    for i, picture in enumerate(nn.functional.interpolate(colours.flatten(0, 1), (64, 64), mode="bicubic")):
        still = (picture.clamp(0, 1) * 255).to(torch.uint8).permute(1, 2, 0)
        clips.append((str(i), still[None].expand(5, -1, -1, -1).contiguous()))
    metrics = ("stream_t", "stream_f", "stream_d", "frame_consistency", "dynamic_degree", "motion_smoothness")
    report = evaluate_generation(with_prompts(clips)[:6], metrics, reference=clips, stream_frames=5, flow_side=128)
    assert report.metrics == pytest.approx(
        {
            "stream_t": 1,
            "stream_f": 1,
            "stream_d": 1,
            "frame_consistency": 1,
            "dynamic_degree": 0,
            "motion_smoothness": 1,
        },
        abs=2e-3,
    )
    names = {"frame_network": "efficientnet-lite0", "frame_consistency": "efficientnet-lite0", "flow": "raft"}
    assert report.protocol["networks"] == names
