"""Every preset, on the meta device: it builds, and comes to what its row states."""

import importlib.util
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from kinema.tokenizers.causal_vae.presets import PRESETS
from kinema.tokenizers.quantizers import BOTTLENECKS, DiscreteBottleneck
from kinema.tokenizers.registry import make_tokenizer

ROOT = Path(__file__).parents[2]
RATIOS = ("4x4x4", "4x8x8", "8x8x8", "4x16x16", "8x16x16")


@pytest.fixture(scope="module")
def benchmark() -> Any:
    """The script that measures what the table states."""
    spec = importlib.util.spec_from_file_location("tokenizer_presets", ROOT / "benchmarks" / "tokenizer_presets.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def test_the_table_has_every_bottleneck_at_every_ratio():
    kl = {f"kl-{ratio}-c{channels}" for ratio in RATIOS for channels in (4, 8, 16, 32)}
    fsq = {f"fsq-{ratio}-{codes}" for ratio in RATIOS for codes in (4096, 32768, 262144)}
    others = {"kl-8x32x32-c128", "lfq-4x8x8-262144", "bsq-4x8x8-262144", "vq-4x8x8-8192"}
    large = {"kl-4x8x8-c16-large", "kl-8x16x16-c32-large"}
    assert set(PRESETS) == kl | fsq | others | large


@pytest.mark.parametrize("name", PRESETS)
def test_a_preset_is_what_its_name_and_its_row_say(name: str, benchmark: Any):
    model = benchmark.build(name)
    assert benchmark.measure(model) == PRESETS[name].cost

    bottleneck, ratio, size = name.removesuffix("-large").split("-")
    temporal, spatial = model.temporal_compression_ratio, model.spatial_compression_ratio
    assert type(model.quantizer) is BOTTLENECKS[bottleneck]
    assert ratio == f"{temporal}x{spatial}x{spatial}"
    if isinstance(model.quantizer, DiscreteBottleneck):
        assert int(size) == model.quantizer.codebook_size
    else:
        assert size == f"c{model.latent_channels}"

    # `measure` has encoded and decoded clips of 17×256×256; a single frame of another size:
    with torch.no_grad():
        latents = model.quantizer(model.encoder(torch.empty(2, 3, 1, 64, 96, device="meta"))).mode
        assert latents.shape == (2, model.latent_channels, 1, 64 // spatial, 96 // spatial)
        assert model.decoder(latents).shape == (2, 3, 1, 64, 96)


@pytest.mark.parametrize(
    ("name", "widths", "encoder_blocks", "decoder_blocks"),
    [
        ("kl-4x8x8-c16", (24, 96, 192), (1, 1, 2), (1, 3, 3)),
        ("fsq-4x8x8-32768", (24, 96, 192), (1, 1, 2), (1, 3, 3)),
        ("kl-4x16x16-c32", (32, 64, 128, 256), (0, 1, 1, 2), (1, 2, 2, 3)),
    ],
)
def test_presets_with_weights_keep_their_architecture(
    name: str, widths: tuple, encoder_blocks: tuple, decoder_blocks: tuple
):
    config = PRESETS[name].config
    assert config["encoder_widths"] == config["decoder_widths"] == widths
    assert (config["encoder_blocks"], config["decoder_blocks"]) == (encoder_blocks, decoder_blocks)


def test_parameters_are_those_of_a_real_model():
    model = make_tokenizer("kl-4x8x8-c16")
    assert sum(p.numel() for p in model.parameters()) / 1e6 == pytest.approx(
        PRESETS["kl-4x8x8-c16"].cost.parameters, rel=5e-3
    )


def test_the_table_of_the_guide_is_the_measured_one(benchmark: Any):
    text = (ROOT / "docs" / "tokenizers.md").read_text()
    assert text.split(benchmark.BEGIN)[1].split(benchmark.END)[0].strip() == benchmark.table()
