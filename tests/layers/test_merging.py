"""Soft merging: one averaged expert per utterance, against loops over utterances."""

import pytest
import torch
from torch.nn import functional as F
from torchaudio.models.wav2vec2.components import FeedForward

from espnet2_lamer.asr.upstream import hidden_states
from espnet2_lamer.convert.architecture import build_hubert
from espnet2_lamer.layers import (
    LamerConfig,
    LamerFeedForward,
    add_lamer,
    record_routing,
)
from espnet2_lamer.layers.experts import LoRAExperts
from espnet2_lamer.layers.packing import Packing
from tests.tiny_hubert import ARCHITECTURE

MERGE = {"merge": "utterance", "top_k": None, "balance": "none"}
LINEARS = ("intermediate_dense", "output_dense")


def merged_expert(experts, gates):
    """A = sum g_k A_k and B = sum g_k B_k, by a loop over experts."""
    r = experts.lora_A.shape[1]
    a = sum(g * experts.lora_A[k] for k, g in enumerate(gates))
    b = sum(g * experts.lora_B[:, k * r : (k + 1) * r] for k, g in enumerate(gates))
    return experts.scale * (b @ a)


def mean_probabilities(router, frames):
    """Softmax of every frame of an utterance ``[T, D]``, averaged over T."""
    return torch.softmax(frames @ router.weight.t(), -1).mean(0)


def reference(module, x):
    """The whole module for one utterance ``[T, D]`` without padding."""

    def delta(name, h, experts):
        router = module.routers["ffn" if module.one_router else name]
        seen = x if module.one_router else h
        return h @ merged_expert(experts, mean_probabilities(router, seen)).t()

    h = x
    for name in LINEARS:
        linear = getattr(module, name)
        experts = isinstance(linear, LoRAExperts)
        base = linear.base if experts else linear
        y = F.linear(h, base.weight, base.bias)
        y = y + delta(name, h, linear) if experts else y
        h = F.gelu(y) if name == LINEARS[0] else y
    if module.ffn_experts is not None:
        h = h + delta("ffn", x, module.ffn_experts)
    return h


@pytest.mark.parametrize("router", ["ffn", "projection"])
@pytest.mark.parametrize("targets", [LINEARS, LINEARS[1:], (*LINEARS, "ffn")])
@pytest.mark.parametrize("seed", range(3))
def test_every_utterance_has_one_averaged_expert_and_padding_never_counts(
    router, targets, seed
):
    generator = torch.Generator().manual_seed(seed)
    batch, frames, dim, ffn, count, rank = (
        int(torch.randint(2, 7, (), generator=generator)) for _ in range(6)
    )
    lengths = torch.randint(1, frames + 1, (batch,), generator=generator)
    config = LamerConfig(rank=rank, alpha=2.5, targets=targets, router=router, **MERGE)
    torch.manual_seed(seed)
    module = LamerFeedForward(FeedForward(dim, ffn, 0.0, 0.0), count, config)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.normal_(std=0.6)
    x = torch.randn(batch, frames, dim, generator=generator)
    packing = Packing.of(lengths, frames)
    x = x.masked_fill(~packing.real.unsqueeze(-1), float("nan"))
    parameters = [p for p in module.parameters() if p.requires_grad]

    expected = torch.cat([reference(module, x[b, :n]) for b, n in enumerate(lengths)])
    found = module(packing.pack(x), packing=packing)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
    alone = [module(x[b : b + 1, :n])[0] for b, n in enumerate(lengths)]
    torch.testing.assert_close(torch.cat(alone), expected, rtol=1e-4, atol=1e-4)
    direction = torch.randn(expected.shape, generator=generator)
    ours, theirs = (
        torch.autograd.grad((y * direction).sum(), parameters)
        for y in (found, expected)
    )
    for one, other in zip(ours, theirs, strict=True):
        scale = max(1.0, float(other.abs().max()))
        torch.testing.assert_close(one, other, rtol=0, atol=1e-4 * scale)
    if router == "ffn":
        # Rows that are wanted alone are still routed by their whole utterance.
        rows = torch.arange(0, packing.size, 2)
        some = module(packing.pack(x), rows, packing)
        torch.testing.assert_close(some, found[rows], rtol=1e-5, atol=1e-5)


def test_it_is_another_function_than_the_gated_sum():
    torch.manual_seed(0)
    soft, merged = (LoRAExperts(5, 6, 3, 2, merges=merges) for merges in (False, True))
    with torch.no_grad():
        soft.lora_B.normal_()
        merged.lora_A.copy_(soft.lora_A), merged.lora_B.copy_(soft.lora_B)
    x = torch.randn(4, 5)
    gates = torch.rand(3).softmax(-1).expand(4, 3)
    difference = (soft(x, gates) - merged(x, gates)).abs().max()
    assert difference > 0.1
    # With one expert chosen for certain both are that expert.
    certain = F.one_hot(torch.tensor([1] * 4), 3).float()
    torch.testing.assert_close(soft(x, certain), merged(x, certain))


def test_the_utterances_mean_is_what_routing_records():
    torch.manual_seed(0)
    config = LamerConfig(rank=2, **MERGE)
    module = LamerFeedForward(FeedForward(6, 8, 0.0, 0.0), 3, config)
    packing = Packing.of(torch.tensor([5, 2]), 5)
    x = torch.randn(2, 5, 6)
    with record_routing(module) as record:
        record.packing = packing
        module(packing.pack(x), packing=packing)
    (routing,) = record
    for row, length in enumerate((5, 2)):
        mean = mean_probabilities(module.routers["ffn"], x[row, :length])
        for found in (routing.probs, routing.gates):
            wanted = mean.expand(length, 3)
            torch.testing.assert_close(found[row, :length], wanted)
            assert not found[row, length:].any()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"merge": "frame"}, r"lamer.merge: found 'frame', expected one of \['none'"),
        ({"merge": "utterance"}, "lamer.top_k: found 2, expected null beside merge"),
        (MERGE | {"top_k": 1}, "lamer.top_k: found 1, expected null beside merge"),
        (MERGE | {"balance": "loss"}, "balance: found 'loss', expected .*importance"),
        (MERGE | {"balance": "bias"}, "balance: found 'bias', expected .*merged one"),
    ],
)
def test_what_a_merged_expert_cannot_have_is_refused_by_name(options, message):
    with pytest.raises(ValueError, match=message):
        LamerConfig(**options)


@pytest.fixture
def merged_hubert():
    """A tiny HuBERT with merged experts that say something."""
    torch.manual_seed(0)
    model = build_hubert(ARCHITECTURE)
    add_lamer(model, LamerConfig(allocation="2,3", rank="2,3", **MERGE))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name or "router" in name:
                parameter.normal_(std=0.5)
    return model.eval()


def test_a_padded_batch_through_torchaudios_blocks_is_each_utterance_alone(
    merged_hubert,
):
    waves = torch.randn(3, 3200)
    lengths = torch.tensor([3200, 1700, 400])
    with torch.no_grad():
        together, frames = hidden_states(merged_hubert, waves, lengths, True)
        public, counts = merged_hubert.extract_features(waves, lengths)
        assert torch.equal(counts, frames)
        for row, (samples, count) in enumerate(zip(lengths, frames, strict=True)):
            wave = waves[row : row + 1, :samples]
            alone, _ = hidden_states(merged_hubert, wave, None, True)
            for ours, theirs in zip(together, alone, strict=True):
                wanted = theirs[0]
                torch.testing.assert_close(
                    ours[row, :count], wanted, rtol=1e-5, atol=1e-5
                )
            first = public[0][row, :count]
            torch.testing.assert_close(first, alone[1][0], rtol=1e-5, atol=1e-5)
    # Nothing is left behind for a pass that says nothing of padding.
    layers = merged_hubert.encoder.transformer.layers
    assert all(layer.feed_forward.real is None for layer in layers)
