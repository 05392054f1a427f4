"""Measuring a pipeline on Toybox prompts: what is counted, what is written, what is refused."""

import json
import logging
from types import MappingProxyType, SimpleNamespace
from typing import Any

import pytest
import torch
from diffusers.schedulers.scheduling_flow_match_euler_discrete import FlowMatchEulerDiscreteScheduler

from kinema.errors import KinemaError
from kinema.eval.toybox import Sampling, Settings, evaluate, run, write_report
from kinema.eval.toybox.report import chance_of, check_oracle, fractions
from kinema.generation.pipeline import KinemaPipeline
from kinema.generation.text import build_word_tokenizer
from kinema.generation.transformer.model import VideoTransformer
from kinema.tokenizers.causal_vae.model import CausalVideoTokenizer
from kinema.tokenizers.causal_vae.presets import TINY
from kinema.training.data.toybox import Toybox

NUM_PROMPTS = 6


class Painter:
    """In place of a pipeline: shows what some prompts ask for, and another clip for the others."""

    config = MappingProxyType({"sample_steps": 7, "sample_guidance_scale": 3.5, "sample_guidance_interval": (0.1, 0.9)})

    def __init__(self, world: Toybox, num_right: int) -> None:
        specs = world.specs(range(NUM_PROMPTS))
        self.vae = SimpleNamespace(device="cpu", dtype=torch.float32, reconstruct=lambda video: video)
        self.calls: list[dict[str, Any]] = []
        other = world.specs([50])[0]
        shown = [spec if number < num_right else other for number, spec in enumerate(specs)]
        self._clips = dict(zip(world.captions(specs), world.render(shown).video, strict=True))

    def set_progress_bar_config(self, **_: Any) -> None:
        pass

    def __call__(self, prompt, image=None, num_inference_steps=None, generator=(), **options):
        noise = [torch.randn(1, generator=each).item() for each in generator]
        self.calls.append({"prompt": prompt, "image": image, "steps": num_inference_steps, "noise": noise, **options})
        video = torch.stack([self._clips[each] for each in prompt])
        return SimpleNamespace(frames=video.transpose(1, 2) / 2 + 0.5)


@pytest.fixture(scope="module")
def world() -> Toybox:
    return Toybox(split="test")


@pytest.fixture(scope="module")
def pipeline_folder(tmp_path_factory):
    torch.manual_seed(0)
    words = Toybox().vocabulary()
    tokenizer = build_word_tokenizer(words)
    pipeline = KinemaPipeline(
        VideoTransformer.from_preset("tiny", text_vocab_size=len(tokenizer)).eval(),
        CausalVideoTokenizer(**TINY).eval(),
        tokenizer,
        FlowMatchEulerDiscreteScheduler(shift=2.0),
        sample_size=(5, 32, 32),
    )
    folder = tmp_path_factory.mktemp("models") / "tiny"
    pipeline.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def report(world, tmp_path_factory):
    sheet = tmp_path_factory.mktemp("sheet") / "sheet.png"
    painter: Any = Painter(world, num_right=4)
    found = evaluate(painter, world, NUM_PROMPTS, Sampling(batch_size=4, seed=3), model="painter", sheet=sheet)
    assert sheet.is_file()
    return found, painter


def test_right_clips_are_counted(report):
    found = report[0]
    assert found.all == pytest.approx(4 / 6)
    assert min(found.object, found.motion, found.background) >= 4 / 6
    assert found.oracle_on_real == found.oracle_on_reconstructions == {"object": 1, "motion": 1, "background": 1}
    assert found.oracle_ok
    assert len(found.clips) == NUM_PROMPTS
    assert (found.first_frame_psnr, found.first_frame_max_difference) == (None, None)


def test_clips_have_noise_of_their_own_and_the_pipelines_defaults(report, world):
    found, painter = report
    assert [len(call["prompt"]) for call in painter.calls] == [4, 2]
    noise = [value for call in painter.calls for value in call["noise"]]
    assert len(set(noise)) == NUM_PROMPTS
    assert (found.num_steps, found.guidance_scale) == (7, 3.5)
    assert painter.calls[0]["steps"] == 7
    assert found.guidance_interval == painter.calls[0]["guidance_interval"] == (0.1, 0.9)
    other: Any = Painter(world, num_right=6)
    evaluate(other, world, 2, Sampling(batch_size=1, seed=3))
    assert [call["noise"][0] for call in other.calls] == noise[:2]


def test_report_is_json_with_the_agreed_keys(report, tmp_path):
    path = tmp_path / "new" / "report.json"
    write_report(report[0], path)
    written = json.loads(path.read_text())
    for key in ("object", "motion", "background", "all"):
        assert 0 <= written[key] <= 1
    for key in ("oracle_on_real", "oracle_on_shuffled", "oracle_on_reconstructions"):
        assert set(written[key]) == {"object", "motion", "background"}
    expected = {"num_prompts": 6, "seed": 3, "num_steps": 7, "guidance_scale": 3.5, "model": "painter"}
    assert {key: written[key] for key in expected} == expected
    assert [clip["prompt"] for clip in written["confusions"]] == [clip["prompt"] for clip in written["clips"][4:]]
    with pytest.raises(KinemaError, match="--overwrite"):
        write_report(report[0], path)
    write_report(report[0], path, overwrite=True)


def test_table_shows_the_fractions(report):
    lines = report[0].table().splitlines()
    assert lines[0].split() == ["object", "motion", "background"]
    assert lines[1].startswith("generated (6 prompts)")
    assert "1.000" in lines[2]


def test_given_first_frames_are_compared(world):
    painter: Any = Painter(world, num_right=2)
    found = evaluate(painter, world, 3, Sampling(image=True))
    assert painter.calls[0]["image"].shape == (3, 3, 64, 64)
    torch.testing.assert_close(painter.calls[0]["image"], world.batch(range(3)).video[:, :, 0] / 2 + 0.5)
    assert found.first_frame_psnr is not None
    assert found.first_frame_psnr < 119  # the third clip is another one: two are equal, one is not
    assert found.first_frame_max_difference is not None
    assert found.first_frame_max_difference > 0.1


def test_bad_oracle_is_reported(world, caplog):
    painter: Any = Painter(world, num_right=6)
    painter.vae.reconstruct = torch.zeros_like
    with caplog.at_level(logging.WARNING, logger="kinema"):
        found = evaluate(painter, world, 3)
    assert not found.oracle_ok
    assert "reconstructions" in caplog.text
    assert "not to be trusted" in found.table()


def test_oracle_is_held_to_its_bounds():
    good = {"object": 0.99, "motion": 0.99, "background": 1.0}
    chance = {"object": 0.02, "motion": 0.125, "background": 0.17}
    assert check_oracle(good, good, chance, chance, 200) == []
    assert "real" in check_oracle({**good, "motion": 0.97}, good, chance, chance, 200)[0]
    assert "reconstructions" in check_oracle(good, {**good, "object": 0.94}, chance, chance, 200)[0]
    assert "wrong prompts" in check_oracle(good, good, {**chance, "object": 0.1}, chance, 200)[0]


def test_chance_is_agreement_of_different_prompts():
    asked = [{"object": "a", "motion": m, "background": b} for m, b in (("x", "p"), ("x", "q"), ("y", "r"))]
    assert chance_of(asked) == {"object": 1.0, "motion": pytest.approx(1 / 3), "background": 0.0}
    shifted = fractions(asked, asked[1:] + asked[:1])
    assert shifted == {"object": 1.0, "motion": pytest.approx(1 / 3), "background": 0.0}


def test_command_measures_a_model_in_a_folder(pipeline_folder, tmp_path, caplog):
    path, sheet = tmp_path / "report.json", tmp_path / "sheet.png"
    settings = Settings(
        model=pipeline_folder,
        num_prompts=2,
        num_steps=2,
        batch_size=2,
        image=True,
        json=path,
        contact_sheet=sheet,
        guidance_scale=2.5,
    )
    with caplog.at_level(logging.WARNING, logger="kinema"):
        found = run(settings)
    written = json.loads(path.read_text())
    assert sheet.is_file()
    assert (written["model"], written["num_steps"], written["guidance_scale"]) == ("tiny", 2, 2.5)
    assert written["objects"] == "shapes"
    assert found.first_frame_psnr is not None
    assert found.first_frame_psnr > 80
    assert found.first_frame_max_difference is not None
    assert found.first_frame_max_difference < 1e-4
    before = path.read_bytes()
    with pytest.raises(KinemaError, match=r"report\.json"):
        run(settings)
    assert path.read_bytes() == before


def test_sprites_are_asked_for(pipeline_folder, tmp_path, monkeypatch):
    monkeypatch.delenv("KINEMA_SPRITES", raising=False)
    with pytest.raises(KinemaError, match=r"sprites\.json"):
        run(Settings(model=pipeline_folder, sprites=tmp_path))
    monkeypatch.setenv("KINEMA_SPRITES", str(tmp_path / "nowhere"))
    with pytest.raises(KinemaError, match="nowhere"):
        run(Settings(model=pipeline_folder))


@pytest.mark.parametrize(
    ("name", "value"),
    [("num_prompts", 1), ("batch_size", 0), ("num_steps", 0)],
)
def test_wrong_numbers_are_named(pipeline_folder, name, value):
    with pytest.raises(KinemaError, match=name):
        run(Settings(model=pipeline_folder, **{"num_prompts": 2, name: value}))


def test_missing_models_are_named(tmp_path):
    with pytest.raises(KinemaError, match="`model`"):
        run(Settings(model=tmp_path / "none"))


def test_prompts_with_two_objects_are_counted_with_their_relation(tmp_path):
    world = Toybox(split="test", num_objects=(2, 2))
    painter: Any = Painter(world, num_right=4)
    found = evaluate(painter, world, NUM_PROMPTS, Sampling(batch_size=4))
    assert found.num_objects == 2
    assert found.num_names == len(world.objects)
    assert found.all == pytest.approx(4 / 6)
    assert set(found.oracle_on_real) == {"object", "motion", "background", "relation"}
    assert found.relation is not None
    assert found.relation >= 4 / 6
    assert "relation" in found.table().splitlines()[0]


def test_worlds_with_a_varying_number_of_objects_are_refused():
    world = Toybox(split="test", num_objects=(1, 2))
    painter: Any = Painter(world, num_right=1)
    with pytest.raises(KinemaError, match="1 to 2 objects"):
        evaluate(painter, world, 2)


@pytest.mark.parametrize("value", [0, 3])
def test_numbers_of_objects_are_one_or_two(pipeline_folder, value):
    with pytest.raises(KinemaError, match="`num_objects`"):
        run(Settings(model=pipeline_folder, num_prompts=2, num_objects=value))
