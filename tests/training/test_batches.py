"""Training batches are a pure function of (seed, rank, step)."""

import dataclasses

import pytest
import torch

from kinema.errors import KinemaError
from kinema.training.config import VALIDATION_PREFIXES, DiffusionTrainingConfig, TokenizerTrainingConfig
from kinema.training.data.batches import TokenizerBatches
from kinema.training.data.sources import CaptionedClips


@pytest.fixture
def config(tmp_path, make_video):
    make_video(tmp_path / "data/a.mp4", num_frames=20)
    make_video(tmp_path / "data/cat_b.mp4", num_frames=20)
    return TokenizerTrainingConfig(
        preset="kl-4x8x8-c16",
        data=(str(tmp_path / "data"), "toybox"),
        cache_dir=tmp_path / "cache",
        batch_size=6,
        shapes=("5x16x16", "1x24x24"),
        validation=VALIDATION_PREFIXES,
        validation_shape="5x16x16",
    )


def test_pure_in_seed_rank_and_step(config):
    batches = TokenizerBatches(config)
    forward = [batches(step) for step in range(4)]
    again = TokenizerBatches(config)
    backward = [again(step) for step in reversed(range(4))][::-1]
    for one, other in zip(forward, backward, strict=True):
        assert torch.equal(one, other)
    others = [
        TokenizerBatches(dataclasses.replace(config, seed=1))(0),
        TokenizerBatches(config, rank=1, world_size=2)(0),
        batches(100),
    ]
    assert not any(torch.equal(forward[0], other) for other in others if other.shape == forward[0].shape)


def test_every_step_has_one_size_and_about_as_many_pixels(config):
    batches = TokenizerBatches(config)
    shapes = {tuple(batches(step).shape) for step in range(12)}
    assert shapes == {(6, 3, 5, 16, 16), (13, 3, 1, 24, 24)}


def test_shape_weights_share_the_steps(config):
    """And equal weights are what no weights are."""
    config = dataclasses.replace(config, data=config.data[:1], batch_size=1)
    weighted = TokenizerBatches(dataclasses.replace(config, shape_weights=(1.0, 3.0)))
    images = sum(weighted(step).shape[2] == 1 for step in range(60))
    assert 35 <= images <= 55  # 45 of 60 expected, deviation 3.4
    plain = TokenizerBatches(config)
    equal = TokenizerBatches(dataclasses.replace(config, shape_weights=(2.0, 2.0)))
    assert all(torch.equal(plain(step), equal(step)) for step in range(6))


def test_ranks_take_the_same_size_in_a_step(config):
    ranks = [TokenizerBatches(config, rank=rank, world_size=2) for rank in range(2)]
    for step in range(6):
        assert ranks[0](step).shape == ranks[1](step).shape


def test_weights_choose_the_source(config, monkeypatch):
    batches = TokenizerBatches(dataclasses.replace(config, shapes=("5x16x16",), data_weights=(1.0, 1e-9)))
    monkeypatch.setattr(batches.sources[1], "clips", lambda *_: pytest.fail("no Toybox clips are wanted"))
    assert batches(0).shape[0] == 6


def test_validation_sources_are_named_and_never_trained_on(config):
    batches = TokenizerBatches(config)
    assert [name for name in batches.contents() if name.endswith(".mp4")] == ["0/a.mp4"]
    validation = batches.validation_clips()
    assert set(validation) == {"cat_b", "toybox"}
    assert validation["cat_b"].shape == (2, 3, 5, 16, 16)


def test_no_data_is_an_error(config):
    with pytest.raises(KinemaError, match="`data`"):
        TokenizerBatches(dataclasses.replace(config, data=()))


def test_captioned_clips_by_number(config, tmp_path):
    (tmp_path / "data/a.txt").write_text("bars move")
    (tmp_path / "data/cat_b.txt").write_text("held out")
    diffusion = DiffusionTrainingConfig(
        preset="tiny", data=config.data, cache_dir=config.cache_dir, shape="5x16x16", validation=VALIDATION_PREFIXES
    )
    clips = CaptionedClips(diffusion)
    video, captions = clips(range(8))
    assert video.shape == (8, 3, 5, 16, 16)
    assert "bars move" in captions
    assert "held out" not in captions
    assert any(caption.startswith("a ") for caption in captions)
    some, some_captions = CaptionedClips(diffusion)([5, 2])
    torch.testing.assert_close(some, video[[5, 2]])
    assert some_captions == [captions[5], captions[2]]
    assert "bars" in clips.words()
    assert "held out" in CaptionedClips(diffusion, "validation")(range(8))[1]


def test_unreadable_validation_files_are_skipped_and_named(config, tmp_path, caplog):
    (tmp_path / "data/cat_broken.mp4").write_bytes(b"no video")
    assert set(TokenizerBatches(config).validation_clips()) == {"cat_b", "toybox"}
    assert "cat_broken.mp4" in caplog.text


def test_nothing_is_held_out_unless_asked(config):
    batches = TokenizerBatches(dataclasses.replace(config, validation=()))
    assert set(batches.validation_clips()) == {"toybox"}


def test_fingerprint_follows_files_and_captions(config, tmp_path, make_video):
    diffusion = DiffusionTrainingConfig(preset="tiny", data=config.data, cache_dir=config.cache_dir, shape="5x16x16")
    before = CaptionedClips(diffusion).fingerprint()
    assert CaptionedClips(diffusion).fingerprint() == before
    (tmp_path / "data/a.txt").write_text("another caption")
    captioned = CaptionedClips(diffusion).fingerprint()
    make_video(tmp_path / "data/c.mp4", num_frames=20)
    assert len({before, captioned, CaptionedClips(diffusion).fingerprint()}) == 3
