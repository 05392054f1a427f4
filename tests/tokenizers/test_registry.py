"""Tokenizers by name: every class and preset is there, and nothing is imported before it is needed."""

import subprocess
import sys

import pytest
import torch

from kinema.errors import KinemaError
from kinema.tokenizers.base import LatentTokenizer
from kinema.tokenizers.causal_vae.presets import PRESETS as CAUSAL
from kinema.tokenizers.holistic.presets import PRESETS as HOLISTIC
from kinema.tokenizers.interface import VideoTokenizer
from kinema.tokenizers.registry import PRESETS, TOKENIZERS, find_preset, make_tokenizer, tokenizer_class
from kinema.tokenizers.transformer.presets import PRESETS as TRANSFORMER


@pytest.mark.parametrize("name", TOKENIZERS)
def test_classes_are_found_by_their_name(name: str):
    cls = tokenizer_class(name)
    assert cls.__name__ == name
    assert issubclass(cls, LatentTokenizer)


def test_every_preset_is_of_one_class():
    assert {preset.tokenizer for preset in PRESETS.values()} == set(TOKENIZERS) - {"VidTokTokenizer"}
    assert len(PRESETS) == len(CAUSAL) + len(TRANSFORMER) + len(HOLISTIC)
    assert set(CAUSAL) == {name for name, preset in PRESETS.items() if preset.tokenizer == "CausalVideoTokenizer"}
    assert PRESETS["vit-kl-4x8x8-c16"].tokenizer == "TransformerVideoTokenizer"
    assert PRESETS["1d-kl-17x64x64-n64-c16"].tokenizer == "HolisticVideoTokenizer"


@pytest.mark.parametrize("name", PRESETS)
def test_every_preset_builds_and_says_what_it_costs(name: str):
    preset = find_preset(name)
    with torch.device("meta"):
        model = make_tokenizer(name)
    assert type(model).__name__ == preset.tokenizer
    assert sum(p.numel() for p in model.parameters()) / 1e6 == pytest.approx(preset.cost.parameters, rel=5e-3)
    for argument, value in preset.config.items():
        assert model.config[argument] == value
    assert isinstance(model, VideoTokenizer)


def test_a_model_has_a_copy_of_its_presets_config():
    with torch.device("meta"):
        make_tokenizer("vit-kl-4x8x8-c16").config["bottleneck"]["name"] = "none"
    assert find_preset("vit-kl-4x8x8-c16").config["bottleneck"]["name"] == "kl"


def test_unknown_names_are_refused():
    with pytest.raises(KinemaError, match=r"`preset` \(='nope'\) must be one of 1d-.*, kl-4x8x8-c16, .*vit-"):
        make_tokenizer("nope")
    with pytest.raises(KinemaError, match=r"`preset` \(='nope'\)"):
        find_preset("nope")
    with pytest.raises(KinemaError, match=r"`name` \(='Wan'\) must be one of CausalVideoTokenizer, Transformer"):
        tokenizer_class("Wan")


def test_the_tables_import_no_network():
    code = "import sys; import kinema.tokenizers.registry; print('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "False\n"
