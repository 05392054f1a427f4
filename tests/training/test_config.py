"""Configurations are strict, round-trip through JSON, and say what is wrong."""

import dataclasses
import json

import pytest

from kinema.errors import KinemaError
from kinema.tokenizers.registry import PRESETS
from kinema.training.config import DiffusionTrainingConfig, TokenizerTrainingConfig, from_dict, parse_shape, to_dict
from kinema.training.data.toybox.source import ToyboxSettings
from kinema.training.entry import parse_arguments
from kinema.training.presets import DIFFUSION_PRESETS, TOKENIZER_PRESETS, select_preset
from kinema.training.tokenizer import main


@pytest.mark.parametrize("config", [*TOKENIZER_PRESETS.values(), *DIFFUSION_PRESETS.values()], ids=lambda c: c.preset)
def test_presets_round_trip_through_json(config):
    assert from_dict(type(config), json.loads(json.dumps(to_dict(config)))) == config


def test_paths_and_tuples_round_trip(tmp_path):
    config = TokenizerTrainingConfig(
        preset="x",
        data=("a", "toybox"),
        data_weights=(1, 2.5),
        source_settings=(ToyboxSettings(sprites=tmp_path, toybox_num_objects=(1, 3)),),
    )
    assert from_dict(TokenizerTrainingConfig, json.loads(json.dumps(to_dict(config)))) == config


def test_unknown_key_fails():
    with pytest.raises(KinemaError, match="`learning_rat`"):
        from_dict(TokenizerTrainingConfig, {"preset": "x", "learning_rat": 0.1})


@pytest.mark.parametrize(
    ("name", "value"),
    [("batch_size", 2.5), ("batch_size", "8"), ("resume", 1), ("schedule", "linear"), ("betas", [0.9]), ("data", "a")],
)
def test_value_of_wrong_type_fails(name, value):
    with pytest.raises(KinemaError, match=f"`{name}`"):
        from_dict(TokenizerTrainingConfig, {"preset": "x", name: value})


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("batch_size", 0),
        ("learning_rate", 0.0),
        ("ema_decay", 1.0),
        ("decay_fraction", 0.0),
        ("schedule_on", "minutes"),
        ("data_weights", (1.0,)),
        ("max_minutes", -1.0),
    ],
)
def test_value_outside_its_range_fails(name, value):
    with pytest.raises(KinemaError, match=f"`{name}`"):
        TokenizerTrainingConfig(preset="x", **{name: value})


@pytest.mark.parametrize(
    ("name", "value", "needed", "there"),
    [
        ("lpips_frames", 2, "lpips_weight", 0.1),
        ("image_decode_weight", 1.0, "image_vae", "folder"),
        ("lecam_weight", 0.01, "adversarial_weight", 0.1),
        ("discriminator_lead", 100, "adversarial_weight", 0.1),
    ],
)
def test_a_setting_without_what_it_acts_on_fails(name, value, needed, there):
    with pytest.raises(KinemaError, match=rf"`{name}` \(={value}\) must not be given without `{needed}`"):
        TokenizerTrainingConfig(preset="x", **{name: value})
    assert getattr(TokenizerTrainingConfig(preset="x", **{name: value, needed: there}), name) == value


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("shape_weights", (1.0, 2.0)),
        ("shape_weights", (0.0,)),
        ("frame_rates", (3.0, 0.0)),
        ("frame_rates", (3.0, 2000.0)),
        ("max_zoom_out", float("inf")),
        ("data", ("clips", "")),
        ("validation", ("",)),
        ("data_weights", (float("inf"),)),
        ("adversarial_weight", -1.0),
        ("adversarial_start", -1),
        ("discriminator_levels", 0),
        ("discriminator_learning_rate", 0.0),
        ("lpips_frames", 0),
        ("max_skipped_steps", 0),
        ("validation_clips", 0),
        ("cache_short_side", 0),
        ("latent_balance", 1.5),
        ("score_lpips", -1.0),
        ("betas", (0.9, 1.0)),
        ("shapes", ("17x64",)),
        ("validation_shape", "17x64"),
    ],
)
def test_tokenizer_value_outside_its_range_fails(name, value):
    with pytest.raises(KinemaError, match=f"`{name}`"):
        TokenizerTrainingConfig(preset="x", **{name: value})


def test_clips_are_decoded_no_smaller_than_they_are_used():
    config = TokenizerTrainingConfig(preset="x", shapes=("17x128x128", "1x256x192"), cache_short_side=144)
    assert config.decoded_short_side == 256
    assert dataclasses.replace(config, shapes=("17x64x64",)).decoded_short_side == 144


def test_every_preset_can_be_trained():
    assert TOKENIZER_PRESETS.keys() >= PRESETS.keys()
    assert all(name == config.preset for name, config in TOKENIZER_PRESETS.items())


def test_diffusion_shares_lie_between_0_and_1():
    with pytest.raises(KinemaError, match="`text_drop`"):
        DiffusionTrainingConfig(preset="tiny", text_drop=1.5)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *(("fps", fps) for fps in (0.0, -1.0, 0.0001, 1001.0, float("nan"), float("inf"))),
        ("max_stride", 0),
        ("max_zoom_out", 0.5),
        ("cache_short_side", 0),
        ("num_samples", -1),
        ("sample_steps", 0),
        ("guidance_scale", float("nan")),
        ("seed", 2**64),
    ],
)
def test_diffusion_value_outside_its_range_fails(name, value):
    with pytest.raises(KinemaError, match=f"`{name}`"):
        DiffusionTrainingConfig(preset="tiny", **{name: value})


def test_gradients_may_stay_as_they_are():
    assert DiffusionTrainingConfig(preset="tiny", max_grad_norm=float("inf"), fps=29.97).fps == 29.97


def test_configs_are_frozen():
    with pytest.raises(dataclasses.FrozenInstanceError):
        setattr(TOKENIZER_PRESETS["kl-4x8x8-c16"], "seed", 3)  # noqa: B010


@pytest.mark.parametrize(
    "text",
    ["17x64", "17x64x0", "axbxc", "17x64x64x3", "", "17x64x\N{SUPERSCRIPT TWO}", "17x64x" + "9" * 5000, "17x64x-1"],
)
def test_shapes_are_checked(text):
    with pytest.raises(KinemaError, match="FRAMESxHEIGHTxWIDTH"):
        parse_shape(text)


def test_unknown_preset_names_the_known_ones():
    with pytest.raises(KinemaError, match=r"`preset` \(=nope\).*kl-4x16x16-c32"):
        select_preset(TOKENIZER_PRESETS, "nope")


def test_command_line_starts_from_the_preset():
    arguments = ["kl-4x16x16-c32", "--data", "a", "toybox", "--data-weights", "1", "3", "--resume", "--seed", "5"]
    config = parse_arguments(TOKENIZER_PRESETS, arguments, "train")
    expected = dataclasses.replace(
        TOKENIZER_PRESETS["kl-4x16x16-c32"], data=("a", "toybox"), data_weights=(1.0, 3.0), resume=True, seed=5
    )
    assert type(config) is TokenizerTrainingConfig
    assert config == expected


def test_command_line_with_unknown_preset():
    with pytest.raises(KinemaError, match="`preset`"):
        parse_arguments(TOKENIZER_PRESETS, ["nope"], "train")


def test_command_line_with_value_outside_its_range():
    with pytest.raises(KinemaError, match=r"`batch_size` \(=0\) must be at least 1"):
        parse_arguments(TOKENIZER_PRESETS, ["kl-4x8x8-c16", "--batch-size", "0"], "train")


def test_a_mistake_leaves_no_run_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for arguments in (["kl-4x8x8-c16"], ["kl-4x8x8-c16", "--data", "missing"]):
        with pytest.raises(KinemaError, match="`data`"):
            main(arguments)
        assert not (tmp_path / "runs" / "kl-4x8x8-c16").exists()


def test_an_unknown_setting_is_named_in_one_line():
    with pytest.raises(KinemaError, match="--no-such-thing") as caught:
        main(["kl-4x8x8-c16", "--no-such-thing", "1"])
    assert "\n" not in str(caught.value)
