"""VQ: nearest codes, the codebook's moving averages, dead codes, saving, several processes."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor

from kinema.errors import KinemaError
from kinema.tokenizers.quantizers import VQ
from kinema.tokenizers.quantizers.usage import CodebookUsage


def hidden(channels: int = 3, seed: int = 0) -> Tensor:
    return torch.randn(2, channels, 3, 4, 5, generator=torch.Generator().manual_seed(seed))


def flat(h: Tensor) -> Tensor:
    return h.movedim(1, -1).flatten(0, -2)


def ready(vq: VQ) -> VQ:
    """As after its first batch: codes stay where they are."""
    vq.initialised.fill_(True)
    return vq.train()


@pytest.mark.parametrize("cosine", [False, True])
@pytest.mark.parametrize("table", [1, 100, 2**22])
def test_takes_the_nearest_code_in_pieces_of_any_size(cosine: bool, table: int, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("kinema.tokenizers.quantizers.vq._TABLE", table)
    vq, h = VQ(20, 3, cosine=cosine).eval(), hidden()
    out = vq(h)
    z = torch.nn.functional.normalize(h, dim=1) if cosine else h
    nearest = torch.cdist(flat(z), vq.codebook).argmin(1)
    assert out.indices is not None
    assert torch.equal(out.indices.flatten(), nearest)
    assert torch.allclose(flat(out.latents), vq.codebook[nearest], atol=1e-6)
    assert out.losses["commitment"].item() == pytest.approx((z - out.latents).square().mean().item(), rel=1e-5)


def test_indices_and_codes_are_one_to_one():
    vq = VQ(50, 3)
    every = torch.randperm(50).view(1, 2, 5, 5)
    codes = vq.indices_to_latents(every)
    assert torch.equal(vq.latents_to_indices(codes), every)
    for index in (-1, 50):
        with pytest.raises(KinemaError, match=rf"`indices` \(={index}\.\.{index}\) must lie in 0\.\.49"):
            vq.indices_to_latents(torch.full((1, 1, 1, 1), index))


@pytest.mark.parametrize(
    ("decay", "memory", "expected"),
    # A batch has 20 latents a code.
    [(0.9, float("inf"), 0.9), (0.9, 1000.0, 0.9), (0.9, 100.0, 0.8), (0.9, 10.0, 0.0)],
)
def test_moves_codes_as_moving_averages_of_sums_and_counts(decay: float, memory: float, expected: float):
    """The reference keeps sums and counts, in shares of a batch, and divides (arXiv 1711.00937, appendix A.1)."""
    vq = ready(VQ(6, 3, decay=decay, memory=memory, revive_below=0.0))
    vq.shares.fill_(1 / 6)
    counts = vq.shares.double()
    sums = vq.codebook.double() * counts[:, None]
    for step in range(30):
        h = hidden(seed=step)
        indices = torch.cdist(flat(h).double(), sums / counts[:, None]).argmin(1)
        one_hot = torch.nn.functional.one_hot(indices, 6).double()
        out = vq(h.requires_grad_())
        assert out.indices is not None
        assert torch.equal(out.indices.flatten(), indices)
        counts = expected * counts + (1 - expected) * one_hot.mean(0)
        sums = expected * sums + (1 - expected) * one_hot.T @ flat(h.detach()).double() / len(indices)
    assert torch.allclose(vq.codebook.double(), sums / counts[:, None], atol=1e-5)
    assert torch.allclose(vq.shares.double(), counts, atol=1e-6)


def test_a_code_without_latents_stays_for_ever_where_it_is():
    vq = ready(VQ(2, 1, decay=0.0, revive_below=0.0))
    vq.codebook.copy_(torch.tensor([[0.0], [100.0]]))
    for _ in range(3):
        vq(torch.randn(1, 1, 2, 2, 2).requires_grad_())
    assert vq.shares.tolist() == [1.0, 0.0]
    assert vq.codebook[1].item() == 100.0
    assert torch.isfinite(vq.codebook).all()


def test_follows_only_in_training_and_only_an_encoder_that_trains():
    vq = ready(VQ(6, 3))
    before = {name: value.clone() for name, value in vq.state_dict().items()}

    def unchanged() -> bool:
        return all(torch.equal(before[name], value) for name, value in vq.state_dict().items())

    vq.eval()(hidden().requires_grad_())
    assert unchanged()
    vq.train()(hidden())  # a frozen encoder
    with torch.no_grad():
        vq(hidden().requires_grad_())
    assert unchanged()
    vq(hidden().requires_grad_())
    assert not unchanged()


@pytest.mark.parametrize("codes", [40, 1000])
def test_the_first_batch_gives_the_codes(codes: int):
    vq, h = VQ(codes, 3).train(), hidden()
    out = vq(h.requires_grad_())
    assert vq.initialised
    assert out.indices is not None
    # 120 latents: 40 codes lie on different ones, and each of those takes its own code; of 1000 every latent is one.
    assert len(out.indices.unique()) == min(codes, 120)
    distances = torch.cdist(flat(out.latents.detach()), flat(h.detach()))
    assert distances.min(1).values.max() < 1e-3
    if codes == 1000:
        assert out.losses["commitment"].item() < 1e-10


def test_dead_codes_come_back_on_latents_and_all_are_used_in_the_end():
    vq = ready(VQ(16, 2, decay=0.5))
    with torch.no_grad():
        vq.codebook[1:] += 1000.0
    generator = torch.Generator().manual_seed(0)
    used = []
    for _ in range(40):
        h = torch.randn(1, 2, 8, 8, 8, generator=generator).requires_grad_()
        out = vq(h, generator=generator)
        assert out.indices is not None
        used.append(len(out.indices.unique()))
    assert used[0] == 1
    assert used[-1] >= 14
    assert vq.codebook.abs().max() < 10


@pytest.mark.parametrize("codes", [256, 1024])
def test_codes_are_in_use_all_the_time_while_the_encoder_moves(codes: int):
    """As in the first hundreds of steps of a training: the latents wander off, by many times what they vary."""
    vq = VQ(codes, 4).train()
    generator = torch.Generator().manual_seed(0)
    usage, perplexity = [], []
    recently = CodebookUsage(codes)
    for step in range(300):
        h = torch.randn(1, 4, 8, 8, 8, generator=generator)
        out = vq((h + 0.05 * step).requires_grad_(), generator=generator)
        assert out.indices is not None
        recently.update(out.indices)
        if step % 50 == 49:
            found = recently.compute()
            usage.append(found["codebook_usage"])
            perplexity.append(found["perplexity"] / codes)
            recently.reset()
    assert min(usage) > 0.9
    assert min(perplexity) > 0.4


def test_codes_that_are_rare_but_in_use_stay():
    vq = ready(VQ(4, 1))
    vq.codebook.copy_(torch.tensor([[0.0], [10.0], [20.0], [30.0]]))
    places = torch.tensor([0.0] * 40 + [10.0] * 40 + [20.0] * 40 + [30.0] * 8).view(1, 1, 8, 4, 4)  # a 4th of the mean
    for _ in range(50):
        vq(places.clone().requires_grad_())
    assert torch.allclose(vq.codebook.flatten(), torch.tensor([0.0, 10.0, 20.0, 30.0]))


def test_the_same_generator_gives_the_same_codebook():
    def train(seed: int) -> Tensor:
        torch.manual_seed(0)
        vq = VQ(30, 3, decay=0.5).train()
        generator = torch.Generator().manual_seed(seed)
        for step in range(8):
            vq(hidden(seed=step).requires_grad_(), generator=generator)
        return vq.codebook

    assert torch.equal(train(1), train(1))
    assert not torch.equal(train(1), train(2))


def test_learns_the_clusters_of_its_data():
    centres = torch.tensor([[5.0, 0.0], [-5.0, 0.0], [0.0, 5.0], [0.0, -5.0]])
    vq = VQ(4, 2, decay=0.8).train()
    generator = torch.Generator().manual_seed(0)
    for _ in range(60):
        which = torch.randint(4, (256,), generator=generator)
        points = centres[which] + torch.randn(256, 2, generator=generator) * 0.3
        vq(points.T.reshape(1, 2, 4, 8, 8).requires_grad_(), generator=generator)
    nearest = torch.cdist(centres, vq.codebook).min(1).values
    assert nearest.max() < 0.5


def test_cosine_keeps_codes_on_the_sphere():
    vq = VQ(12, 3, cosine=True).train()
    for step in range(4):
        vq(hidden(seed=step).requires_grad_())
    assert torch.allclose(vq.codebook.norm(dim=1), torch.ones(12), atol=1e-5)


def test_passes_gradients_straight_through_and_gives_none_to_the_codebook():
    h = hidden().requires_grad_()
    vq = ready(VQ(6, 3))
    out = vq(h)
    weight = torch.randn(h.shape)
    (out.latents * weight).sum().backward()
    assert h.grad is not None
    assert torch.equal(h.grad, weight)
    assert list(vq.parameters()) == []


def test_everything_that_training_moves_is_saved_and_goes_on_bit_for_bit():
    vq, again = VQ(8, 3, decay=0.5).train(), VQ(8, 3, decay=0.5).train()
    vq(hidden(seed=0).requires_grad_())
    again.load_state_dict(vq.state_dict())
    for one in (vq, again):
        one(hidden(seed=1).requires_grad_(), generator=torch.Generator().manual_seed(3))
    assert torch.equal(vq.codebook, again.codebook)
    assert set(vq.state_dict()) == {"codebook", "shares", "recent_shares", "initialised"}


def test_autocast_and_half_precision_compare_in_float32():
    vq, h = VQ(500, 3).eval(), hidden()
    expected = vq(h).indices
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(vq(h).indices, expected)
    half = vq.half()(h)
    assert half.latents.dtype == torch.float32
    assert half.indices is not None


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"codebook_size": 1}, r"`codebook_size` \(=1\) must be at least 2"),
        ({"latent_channels": 0}, r"`latent_channels` \(=0\) must be at least 1"),
        ({"decay": 1.0}, r"`decay` \(=1.0\)"),
        ({"memory": 0.0}, r"`memory` \(=0.0\) must be above 0"),
        ({"revive_below": -0.1}, r"`revive_below` \(=-0.1\)"),
    ],
)
def test_wrong_arguments_are_refused(arguments: dict, message: str):
    with pytest.raises(KinemaError, match=message):
        VQ(**{"codebook_size": 4, "latent_channels": 2, **arguments})


PROGRAM = """
import sys, torch, torch.distributed as dist
from kinema.tokenizers.quantizers import VQ

torch.set_num_threads(1)
rank, store, out = int(sys.argv[1]), sys.argv[2], sys.argv[3]
if rank >= 0:
    dist.init_process_group("gloo", init_method="file://" + store, rank=rank, world_size=2)
batches = [torch.randn(4, 3, 3, 4, 5, generator=torch.Generator().manual_seed(step)) for step in range(6)]
mine = slice(None) if rank < 0 else slice(2 * rank, 2 * rank + 2)
found = {}
for name, revive_below, initialised in (("averages", 0.0, True), ("revived", 0.5, False)):
    torch.manual_seed(0)
    vq = VQ(20, 3, decay=0.5, revive_below=revive_below).train()
    vq.initialised.fill_(initialised)
    for step, batch in enumerate(batches):
        vq(batch[mine].clone().requires_grad_(), generator=torch.Generator().manual_seed(10 * step + rank + 1))
    found[name], found[name + "_shares"] = vq.codebook, vq.shares
torch.save(found, out)
"""


@pytest.mark.slow
def test_two_processes_have_the_codebook_of_one_that_sees_all(tmp_path: Path):
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    outputs = [tmp_path / f"{rank}.pt" for rank in (-1, 0, 1)]
    running = [
        subprocess.Popen(
            [sys.executable, "-c", PROGRAM, str(rank), str(tmp_path / "store"), str(output)], env=environment
        )
        for rank, output in zip((-1, 0, 1), outputs, strict=True)
    ]
    assert [process.wait(timeout=300) for process in running] == [0, 0, 0]
    one, first, second = (torch.load(path, weights_only=True) for path in outputs)
    for name in first:
        assert torch.equal(first[name], second[name])
    assert torch.allclose(first["averages"], one["averages"], atol=1e-5)
    assert torch.allclose(first["averages_shares"], one["averages_shares"], atol=1e-6)
    # Latents of both processes became codes, which start on them.
    assert torch.isfinite(first["revived"]).all()
    assert not torch.allclose(first["revived"], one["revived"])
