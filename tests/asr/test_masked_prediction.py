"""The head equals torchaudio's, whose target is column 0, in loss and gradient."""

import pytest
import torch
from torch.nn import functional as F
from torchaudio.models.wav2vec2.components import _compute_logits

from espnet2_lamer.asr.encoder.masked_prediction import (
    MaskedPredictionHead,
    MaskEmbedding,
)


@pytest.mark.parametrize(
    ("units", "frames", "dim"), [(5, 1, 4), (50, 40, 8), (3, 30, 16)]
)
def test_loss_and_gradients_equal_torchaudios_logits(units, frames, dim):
    torch.manual_seed(units)
    head = MaskedPredictionHead(6, units, dim)
    hidden = torch.randn(frames, 6, requires_grad=True)
    target = torch.randint(0, units, (frames,))

    ours = F.cross_entropy(head(hidden), target)
    inputs = [hidden, *head.parameters()]
    our_grads = torch.autograd.grad(ours, inputs)

    projected = head.final_proj(hidden)
    logits = _compute_logits(projected, target, head.label_embeddings)
    assert logits.shape == (frames, units + 1)
    theirs = F.cross_entropy(logits, torch.zeros(frames, dtype=torch.long))
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)
    for found, expected in zip(
        our_grads, torch.autograd.grad(theirs, inputs), strict=True
    ):
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


def test_logits_are_cosines_over_the_temperature():
    torch.manual_seed(0)
    head = MaskedPredictionHead(6, 5, 4, logit_temp=0.25)
    hidden = torch.randn(3, 6)
    logits = head(hidden)
    projected = head.final_proj(hidden)
    for t in range(3):
        for c in range(5):
            cosine = F.cosine_similarity(projected[t], head.label_embeddings[c], dim=0)
            assert logits[t, c].item() == pytest.approx(cosine.item() / 0.25, abs=1e-5)


def test_logits_are_float32_under_autocast():
    torch.manual_seed(0)
    head = MaskedPredictionHead(6, 5, 4)
    hidden = torch.randn(3, 6)
    with torch.autocast("cpu", torch.bfloat16):
        logits = head(hidden)
    assert logits.dtype == torch.float32
    torch.testing.assert_close(logits, head(hidden), rtol=0.05, atol=0.1)


def test_parameter_names_are_those_of_torchaudios_logit_generator():
    from torchaudio.models.wav2vec2.components import LogitGenerator

    theirs = LogitGenerator(6, 5, 4, False, False).state_dict()
    ours = MaskedPredictionHead(6, 5, 4).state_dict()
    assert {k: v.shape for k, v in ours.items()} == {
        k: v.shape for k, v in theirs.items()
    }


def test_mask_embedding_replaces_masked_frames_only():
    x = torch.randn(2, 3, 4)
    mask = torch.tensor([[True, False, True], [False, False, False]])
    module = MaskEmbedding(4)
    y = module(x, mask)
    assert torch.equal(y[~mask], x[~mask])
    assert torch.equal(y[mask], module.mask_embedding.detach().expand(2, 4))


def test_a_known_mask_embedding_is_frozen_and_a_new_one_trains():
    value = torch.rand(4)
    known = MaskEmbedding(4, value).mask_embedding
    assert torch.equal(known, value) and not known.requires_grad
    value.zero_()
    assert known.abs().sum() > 0
    assert MaskEmbedding(4).mask_embedding.requires_grad
