"""CLIPScore and frame consistency, against torchmetrics and against the definitions, with a tiny random CLIP."""

import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn.functional import cosine_similarity
from torchmetrics.functional.multimodal import clip_score as reference_score
from transformers import (
    CLIPConfig,
    CLIPImageProcessor,
    CLIPModel,
    CLIPProcessor,
    CLIPTokenizer,
    Dinov2Config,
    Dinov2Model,
    ViTImageProcessor,
)

from kinema.errors import KinemaError
from kinema.eval.motion.frame_networks import load_frame_network
from kinema.eval.text.clip import CLIPEncoder, load_clip
from kinema.eval.text.clip_score import CLIPScore, clip_score
from kinema.eval.text.frame_consistency import frame_consistency

PROMPTS = ["a red car drives to the right", "a dog"]


@pytest.fixture(scope="session")
def clip_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A saved random CLIP, small, that spells its words letter by letter."""
    folder = tmp_path_factory.mktemp("clip")
    letters = "abcdefghijklmnopqrstuvwxyz"
    tokens = [*letters, *(f"{letter}</w>" for letter in letters), "<|startoftext|>", "<|endoftext|>"]
    tokenizer = CLIPTokenizer(vocab={token: i for i, token in enumerate(tokens)}, merges=[])
    shape = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    marks = {"bos_token_id": 52, "eos_token_id": 53, "pad_token_id": 53}
    config = CLIPConfig(
        text_config={**shape, **marks, "vocab_size": len(tokens), "max_position_embeddings": 32},
        vision_config={**shape, "image_size": 32, "patch_size": 8},
        projection_dim=12,
    )
    size = {"height": 32, "width": 32}
    # Random weights as drawn tell pictures hardly apart, and differ from version to version: larger ones, by name.
    model, generator = CLIPModel(config), torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, parameter in sorted(model.named_parameters()):
            noise = torch.randn(parameter.shape, generator=generator)
            parameter.copy_(noise * 0.3 + float("norm" in name and name.endswith("weight")))
    model.save_pretrained(folder)
    CLIPProcessor(CLIPImageProcessor(size={"shortest_edge": 32}, crop_size=size), tokenizer).save_pretrained(folder)
    return folder


class TensorsOnly(CLIPModel):
    """A CLIP as torchmetrics 1.9 knows it: since transformers 5 the features come inside an output."""

    def get_image_features(self, *args: Any, **kwargs: Any) -> Any:
        output: Any = super().get_image_features(*args, **kwargs)
        return output.pooler_output

    def get_text_features(self, *args: Any, **kwargs: Any) -> Any:
        output: Any = super().get_text_features(*args, **kwargs)
        return output.pooler_output


@pytest.fixture(scope="session")
def reference(clip_folder: Path):
    model, processor = TensorsOnly.from_pretrained(clip_folder).eval(), CLIPProcessor.from_pretrained(clip_folder)

    def score(clip: torch.Tensor, prompt: str) -> float:
        frames = list(clip.transpose(0, 1))
        with torch.no_grad():
            return float(reference_score(frames, [prompt] * len(frames), lambda: (model, processor)))

    return score


@pytest.fixture
def videos() -> torch.Tensor:
    """Neither square nor of the network's size, so that preprocessing matters; smooth and noisy frames."""
    noise = torch.rand(2, 3, 5, 40, 52)
    noise[0] = torch.nn.functional.avg_pool3d(noise[:1], (1, 9, 9), 1, (0, 4, 4))[0]
    return (noise * 255).to(torch.uint8)


def test_scores_equal_torchmetrics(clip_folder: Path, reference, videos: torch.Tensor):
    expected = torch.tensor([reference(clip, prompt) for clip, prompt in zip(videos, PROMPTS, strict=True)])
    assert expected.max() > 1  # a clamped 0 would prove nothing
    torch.testing.assert_close(clip_score(videos, PROMPTS, clip_folder), expected, atol=1e-4, rtol=0)
    metric = CLIPScore(clip_folder)
    metric.update(videos[:1], PROMPTS[:1])
    metric.update(videos[1:], PROMPTS[1:])
    assert float(metric.compute()) == pytest.approx(float(expected.mean()), abs=1e-4)


def test_the_mean_is_clamped_and_not_its_parts(clip_folder: Path, reference, videos: torch.Tensor):
    encoder = load_clip(clip_folder)
    clip = videos[1]
    cosines = encoder.image_features(clip.transpose(0, 1)) @ encoder.text_features([PROMPTS[0]])[0]
    flipped = CLIPEncoder(encoder.model, encoder.processor)
    text = encoder.text_features

    # The prompt turned around turns the sign of every cosine: the set's score is 0 on one of the two sides.
    flipped.text_features = lambda texts: -text(texts)
    both = [float(clip_score(videos[1:], PROMPTS[:1], model)[0]) for model in (encoder, flipped)]
    assert sorted(both) == pytest.approx([0, 100 * abs(float(cosines.mean()))], abs=1e-4)


def test_float_clips_are_those_in_levels(clip_folder: Path, videos: torch.Tensor):
    encoder = load_clip(clip_folder)
    as_float = videos.float() / 127.5 - 1
    assert torch.equal(clip_score(as_float, PROMPTS, encoder), clip_score(videos, PROMPTS, encoder))


def test_batches_do_not_matter(clip_folder: Path, videos: torch.Tensor):
    one = load_clip(clip_folder, batch_size=1)
    torch.testing.assert_close(
        clip_score(videos, PROMPTS, one), clip_score(videos, PROMPTS, clip_folder), atol=1e-4, rtol=0
    )
    for index, prompt in enumerate(PROMPTS):  # padding beside a longer prompt does not matter either
        alone = one.text_features([prompt])
        torch.testing.assert_close(one.text_features(PROMPTS)[index : index + 1], alone, atol=1e-5, rtol=0)


def test_a_long_prompt_is_cut_with_a_warning(clip_folder: Path, caplog: pytest.LogCaptureFixture):
    encoder = load_clip(clip_folder)
    with caplog.at_level(logging.WARNING, logger="kinema"):
        long = encoder.text_features(["abcde " * 20])
    assert "has 102 tokens" in caplog.text
    assert "reads 32" in caplog.text
    # 30 letters between two marks: what is left is read as a prompt of its own, end mark and all.
    assert torch.allclose(long, encoder.text_features(["abcde " * 6]), atol=1e-5)


@pytest.mark.parametrize(
    ("videos", "prompts", "message"),
    [
        (torch.zeros(2, 3, 1, 8, 8), ["a"], r"`prompts` \(1 of them\)"),
        (torch.full((1, 3, 1, 8, 8), 2.0), ["a"], r"\[-1, 1\]"),
        (torch.full((1, 3, 1, 8, 8), float("nan")), ["a"], r"\[-1, 1\]"),
    ],
)
def test_bad_clips_are_refused(clip_folder: Path, videos: torch.Tensor, prompts: list[str], message: str):
    with pytest.raises(KinemaError, match=message):
        clip_score(videos, prompts, clip_folder)


def test_no_clip_is_refused(clip_folder: Path):
    metric = CLIPScore(clip_folder)
    with pytest.raises(KinemaError, match=r"`videos` \(=0 of them\)"), pytest.warns(UserWarning, match="before"):
        metric.compute()


def test_what_is_no_clip_is_refused(tmp_path: Path):
    with pytest.raises(KinemaError, match=r"`clip` \(=.*nowhere'\) must be a CLIP: a folder"):
        load_clip(tmp_path / "nowhere")
    save_dinov2(tmp_path)
    with pytest.raises(KinemaError, match="of type 'dinov2'"):
        load_clip(tmp_path)
    with pytest.raises(KinemaError, match=r"`frame_network` \(='no/such'\) must be one of efficientnet-lite0, or"):
        load_frame_network("no/such")


def save_dinov2(folder: Path) -> Dinov2Model:
    config = Dinov2Config(hidden_size=16, num_hidden_layers=2, num_attention_heads=2, image_size=28, patch_size=14)
    model = Dinov2Model(config).eval()
    model.save_pretrained(folder)
    size = {"height": 28, "width": 28}
    ViTImageProcessor(size=size).save_pretrained(folder)
    return model


def test_published_vision_models_give_their_class_token(tmp_path: Path, clip_folder: Path, videos: torch.Tensor):
    model = save_dinov2(tmp_path)
    images = videos[0].transpose(0, 1)
    with torch.no_grad():
        features = load_frame_network(str(tmp_path))(images)
        pixels = ViTImageProcessor(size={"height": 28, "width": 28})(list(images), return_tensors="pt")
        expected = model(**pixels).pooler_output
    torch.testing.assert_close(features, expected, atol=1e-5, rtol=0)
    clip = load_frame_network(str(clip_folder))(images)
    assert torch.equal(clip, load_clip(clip_folder).image_features(images))


def test_frame_consistency_is_as_defined():
    features = torch.randn(2, 6, 8)
    curve = frame_consistency(features)
    assert curve[:, 0].isnan().all()
    for clip, scores in zip(features, curve, strict=True):
        for t in range(1, 6):
            parts = [max(0.0, float(cosine_similarity(clip[t], clip[other], dim=0))) for other in (t - 1, 0)]
            assert float(scores[t]) == pytest.approx(sum(parts) / 2, abs=1e-5)


def test_frame_consistency_of_known_clips():
    still = torch.randn(1, 1, 8).expand(1, 5, 8)
    assert float(frame_consistency(still)[:, 1:].mean()) == pytest.approx(1, abs=1e-6)
    # Opposites: never alike to the one before, every second time alike to the first.
    there_and_back = torch.tensor([1.0, -1, 1, -1])[None, :, None].expand(1, 4, 3)
    assert frame_consistency(there_and_back)[0, 1:].tolist() == pytest.approx([0, 0.5, 0])
    with pytest.raises(KinemaError, match="at least 2 frames"):
        frame_consistency(still[:, :1])
