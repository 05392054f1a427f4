"""The holistic tokenizer: presets, and quality that grows with the number of tokens."""

from itertools import pairwise

import pytest
import torch
from torch import Tensor

from kinema.flops import FlopCounter
from kinema.tokenizers.holistic.model import HolisticVideoTokenizer
from kinema.tokenizers.holistic.presets import PRESETS
from kinema.tokenizers.presets import kl
from kinema.tokenizers.quantizers import BOTTLENECKS, DiscreteBottleneck
from kinema.tokenizers.registry import make_tokenizer


@pytest.mark.parametrize("name", PRESETS)
def test_a_preset_is_what_its_name_says(name: str):
    with torch.device("meta"):
        model = make_tokenizer(name)
    assert sum(p.numel() for p in model.parameters()) / 1e6 == pytest.approx(PRESETS[name].cost.parameters, rel=5e-3)
    _, bottleneck, window, tokens, size = name.split("-")
    assert type(model.quantizer) is BOTTLENECKS[bottleneck]
    frames, side = model.temporal_compression_ratio, model.spatial_compression_ratio
    assert (window, tokens) == (f"{frames}x{side}x{side}", f"n{model.num_tokens}")
    if isinstance(model.quantizer, DiscreteBottleneck):
        assert int(size) == model.quantizer.codebook_size
    else:
        assert size == f"c{model.latent_channels}"


@torch.no_grad()
@pytest.mark.parametrize(
    "name",
    ["1d-kl-17x64x64-n64-c16", *(pytest.param(n, marks=pytest.mark.slow) for n in PRESETS if "64x64" not in n)],
)
def test_a_preset_costs_what_its_row_says(name: str):
    with torch.device("meta"):
        model = make_tokenizer(name).eval()
        side = model.spatial_compression_ratio
        windows = torch.empty((256 // side) ** 2, 3, 17, side, side)
        tokens = torch.empty(len(windows), model.num_tokens, model.latent_channels)
    with FlopCounter() as encoding:
        model.encoder(windows, model.num_tokens)
    with FlopCounter() as decoding:
        assert model.decoder(tokens).shape == windows.shape
    assert encoding.get_total_flops() / 1e9 == pytest.approx(PRESETS[name].cost.encode, rel=5e-3)
    assert decoding.get_total_flops() / 1e9 == pytest.approx(PRESETS[name].cost.decode, rel=5e-3)


def moving_squares(count: int, frames: int, size: int, generator: torch.Generator) -> Tensor:
    """Clips of three squares of random colours that move over a plain ground, each at its own constant speed."""
    steps = torch.arange(frames).view(1, -1, 1, 1)
    axis = torch.arange(size).float()
    clips = (torch.rand(count, 3, 1, 1, 1, generator=generator) * 2 - 1).expand(-1, -1, frames, size, size).clone()
    for _ in range(3):
        colour, place = (torch.rand(count, 3, generator=generator) for _ in range(2))
        speed = torch.rand(count, 2, 1, 1, 1, generator=generator) * 2 - 1
        side = size * (0.1 + 0.15 * place[:, 2]).view(-1, 1, 1, 1)
        y, x = (size * place[:, k].view(-1, 1, 1, 1) + speed[:, k] * steps for k in range(2))
        inside = ((axis.view(-1, 1) - y).abs() < side) & ((axis - x).abs() < side)
        clips = torch.where(inside[:, None], (colour * 2 - 1).view(count, 3, 1, 1, 1), clips)
    return clips


def prefix_psnr(model: HolisticVideoTokenizer, clips: Tensor) -> dict[int, float]:
    """Mean PSNR of clips by the number of tokens that are decoded."""
    psnr = {}
    with torch.no_grad():
        latents = model.eval().encode(clips).latents
        for count in (1, 4, 16, 64):
            error = (model.decode(latents[..., :count]).sample.clamp(-1, 1) - clips).square().mean(dim=(1, 2, 3, 4))
            psnr[count] = float((10 * torch.log10(4 / error)).mean())
    return psnr


@pytest.mark.slow
def test_quality_grows_with_the_number_of_tokens():
    """A short training on moving squares; prints PSNR by tokens before it and after it."""
    torch.manual_seed(0)
    model = HolisticVideoTokenizer(
        bottleneck=kl(4), num_frames=9, size=32, num_tokens=64, patch=(4, 8, 8), head_dim=32,
        encoder_width=96, encoder_depth=2, decoder_width=96, decoder_depth=3,
    )  # fmt: skip
    generator = torch.Generator().manual_seed(0)
    model.init_linear(moving_squares(32, 9, 32, generator) for _ in range(8))
    model.freeze_linear()
    held_out = moving_squares(64, 9, 32, torch.Generator().manual_seed(1))
    before = prefix_psnr(model, held_out)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-3, betas=(0.9, 0.98))
    for step in range(STEPS):
        optimizer.param_groups[0]["lr"] = 1e-3 * min((step + 1) / 20, 2 * (STEPS - step) / STEPS, 1)
        clips = moving_squares(8, 9, 32, generator)
        reconstruction, output = model.train()(clips, generator=generator)
        loss = (reconstruction - clips).square().mean() + 1e-6 * output.losses["kl"]
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
    after = prefix_psnr(model, held_out)
    print(before, after)
    for psnr in (before, after):
        for fewer, more in pairwise(psnr.values()):
            assert more > fewer + 0.3
    assert sum(after.values()) > sum(before.values())


STEPS = 150
