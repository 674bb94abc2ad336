"""Rows of real frames, and attention among them without a mask."""

import pytest
import torch
from torchaudio.models.wav2vec2.components import SelfAttention

from espnet2_lamer.layers.packing import Packing


def additive_mask(lengths, frames):
    """torchaudio's own: far below 0 where a key is padding, ``[B, 1, T, T]``."""
    padding = torch.arange(frames) >= lengths[:, None]
    mask = -10000.0 * padding[:, None, None, :].float()
    return mask.expand(-1, 1, frames, -1)


def fused(attention, x):
    parts = (attention.q_proj, attention.k_proj, attention.v_proj)
    return torch.cat([part(x) for part in parts], -1)


@pytest.mark.parametrize("seed", range(6))
def test_attention_among_rows_is_torchaudios_with_its_mask(seed):
    generator = torch.Generator().manual_seed(seed)
    batch, frames = (int(torch.randint(2, 6, (), generator=generator)) for _ in "bt")
    frames *= 7
    lengths = torch.randint(1, frames + 1, (batch,), generator=generator)
    lengths[0] = frames
    if seed == 5:
        lengths[:] = frames  # no padding
    torch.manual_seed(seed)
    attention = SelfAttention(24, 4)
    x = torch.randn(batch, frames, 24, requires_grad=True)
    expected, _ = attention(x, additive_mask(lengths, frames))
    packing = Packing.of(lengths, frames)
    assert packing.size == int(lengths.sum())
    assert (packing.rows is None) == (seed == 5)
    rows = packing.attend(fused(attention, packing.pack(x)), 4)
    found = packing.unpack(attention.out_proj(rows))
    real = packing.real.unsqueeze(-1)
    torch.testing.assert_close(found * real, expected * real, rtol=1e-5, atol=1e-5)
    assert not (found * ~real).any()
    direction = torch.randn(expected.shape) * real
    ours, theirs = (
        torch.autograd.grad((y * direction).sum(), [x, *attention.parameters()])
        for y in (found, expected)
    )
    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("lengths", [[30, 30], [30, 11]])
def test_half_precision_on_a_cpu_is_near_float32(lengths):
    torch.manual_seed(0)
    packing = Packing.of(torch.tensor(lengths), 30)
    exact = torch.randn(packing.size, 3 * 32).bfloat16().float().requires_grad_()
    half = exact.detach().bfloat16().requires_grad_()
    expected, found = packing.attend(exact, 4), packing.attend(half, 4)
    assert found.dtype == torch.bfloat16
    direction = torch.randn(expected.shape)
    (expected * direction).sum().backward()
    (found.float() * direction).sum().backward()
    for ours, theirs in ((found, expected), (half.grad, exact.grad)):
        error = (ours.float() - theirs).norm() / theirs.norm()
        assert error < 0.02  # bf16 keeps eight bits


@pytest.mark.parametrize("seed", range(4))
def test_packing_and_unpacking_are_inverse_and_find_positions(seed):
    generator = torch.Generator().manual_seed(seed)
    lengths = torch.randint(1, 9, (3,), generator=generator)
    packing = Packing.of(lengths, 9)
    grid = torch.randn(3, 9, 2, generator=generator)
    rows = packing.pack(grid)
    by_hand = [grid[b, t] for b in range(3) for t in range(int(lengths[b]))]
    assert torch.equal(rows, torch.stack(by_hand))
    assert torch.equal(packing.unpack(rows), grid * packing.real.unsqueeze(-1))
    assert packing.starts.tolist() == [0, *lengths.cumsum(0).tolist()]
    positions = torch.tensor([b * 9 + int(lengths[b]) - 1 for b in range(3)])
    last = rows.index_select(0, packing.row_of(positions))
    assert torch.equal(
        last, torch.stack([grid[b, n - 1] for b, n in enumerate(lengths)])
    )
    known = Packing.of(lengths, 9, packing.rows)
    assert torch.equal(known.pack(grid), rows)
