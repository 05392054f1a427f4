"""Muon: what its updates are, and that it is AdamW elsewhere."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from kinema.training.muon import Muon, orthogonalize


@settings(max_examples=15, deadline=None)
@given(rows=st.integers(2, 24), columns=st.integers(2, 24), seed=st.integers(0, 99))
def test_orthogonalize_keeps_directions_and_levels_their_sizes(rows: int, columns: int, seed: int):
    generator = torch.Generator().manual_seed(seed)
    left, _, right = torch.linalg.svd(torch.randn(rows, columns, generator=generator), full_matrices=False)
    sizes = torch.linspace(1.0, 0.1, len(right))
    result = orthogonalize(left * sizes @ right)
    levelled = (left.T @ result @ right.T).diagonal()
    assert levelled.min() > 0.5
    assert levelled.max() < 1.3
    assert torch.linalg.matrix_norm(result - left * levelled @ right) < 0.2


def test_update_of_a_kernel_has_the_size_of_an_adam_step():
    weight = torch.nn.Parameter(torch.zeros(16, 8, 3, 3))
    weight.grad = torch.randn(weight.shape, generator=torch.Generator().manual_seed(0))
    optimizer = Muon([{"params": [weight], "muon": True}], lr=1e-2, betas=(0.9, 0.99))
    optimizer.step()
    # 0.2 of the learning rate, root mean square (arXiv 2502.16982, section 2.2).
    assert weight.detach().square().mean().sqrt().item() == pytest.approx(2e-3, rel=0.2)
    assert (weight.detach() * weight.grad).sum() < 0


def test_other_groups_are_adamw():
    generator = torch.Generator().manual_seed(0)
    start, gradients = torch.randn(7, generator=generator), torch.randn(5, 7, generator=generator)
    ours, theirs = (torch.nn.Parameter(start.clone()) for _ in range(2))
    mine = Muon([{"params": [ours], "weight_decay": 0.1}], lr=1e-2, betas=(0.9, 0.98))
    reference = torch.optim.AdamW([theirs], lr=1e-2, betas=(0.9, 0.98), weight_decay=0.1)
    for gradient in gradients:
        ours.grad, theirs.grad = gradient.clone(), gradient.clone()
        mine.step()
        reference.step()
    assert torch.allclose(ours, theirs, atol=1e-6)


def test_fits_faster_than_its_start():
    generator = torch.Generator().manual_seed(0)
    target = torch.randn(12, 12, generator=generator)
    weight = torch.nn.Parameter(torch.zeros(12, 12))
    optimizer = Muon([{"params": [weight], "muon": True}], lr=0.1, betas=(0.9, 0.99))
    for _ in range(60):
        loss = (weight - target).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert (weight - target).square().mean() < 0.1 * target.square().mean()
