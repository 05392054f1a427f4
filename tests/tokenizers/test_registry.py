"""Tokenizers by name: every class and preset is there, and nothing is imported before it is needed."""

import subprocess
import sys

import pytest
import torch

from kinema.errors import KinemaError
from kinema.tokenizers.base import LatentTokenizer
from kinema.tokenizers.causal_vae.presets import PRESETS as CAUSAL
from kinema.tokenizers.causal_vae.presets import Stated
from kinema.tokenizers.interface import VideoTokenizer
from kinema.tokenizers.registry import PRESETS, TOKENIZERS, make_tokenizer, preset_config, stated, tokenizer_class


@pytest.mark.parametrize("name", TOKENIZERS)
def test_classes_are_found_by_their_name(name: str):
    cls = tokenizer_class(name)
    assert cls.__name__ == name
    assert issubclass(cls, LatentTokenizer)
    assert set(cls.presets) == {preset for preset, owner in PRESETS.items() if owner == name}


def test_every_preset_is_of_one_class():
    assert set(PRESETS.values()) == set(TOKENIZERS)
    assert set(CAUSAL) == {preset for preset, name in PRESETS.items() if name == "CausalVideoTokenizer"}
    assert PRESETS["vit-kl-4x8x8-c16"] == "TransformerVideoTokenizer"
    assert PRESETS["1d-kl-17x64x64-n64-c16"] == "HolisticVideoTokenizer"


@pytest.mark.parametrize("preset", PRESETS)
def test_every_preset_builds_and_says_what_it_costs(preset: str):
    with torch.device("meta"):
        model = make_tokenizer(preset)
    assert type(model).__name__ == PRESETS[preset]
    costs = stated(preset)
    assert isinstance(costs, Stated)
    assert sum(p.numel() for p in model.parameters()) / 1e6 == pytest.approx(costs.parameters, rel=5e-3)
    for name, value in preset_config(preset).items():
        assert model.config[name] == value
    assert isinstance(model, VideoTokenizer)


def test_a_config_is_a_copy():
    preset_config("vit-kl-4x8x8-c16")["bottleneck"] = "none"
    assert preset_config("vit-kl-4x8x8-c16")["bottleneck"] == "kl"


def test_unknown_names_are_refused():
    with pytest.raises(KinemaError, match=r"`preset` \(='nope'\) must be one of 1d-.*, kl-4x8x8-c16, .*vit-"):
        make_tokenizer("nope")
    with pytest.raises(KinemaError, match=r"`preset` \(='nope'\)"):
        preset_config("nope")
    with pytest.raises(KinemaError, match=r"`preset` \(='nope'\)"):
        stated("nope")
    with pytest.raises(KinemaError, match=r"`name` \(='Wan'\) must be one of CausalVideoTokenizer, Transformer"):
        tokenizer_class("Wan")


def test_the_tables_import_no_network():
    code = "import sys; import kinema.tokenizers.registry; print('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "False\n"
