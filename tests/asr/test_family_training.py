"""What a training does to the blocks of other families changes nothing they compute."""

import pytest
import torch

from espnet2_lamer.asr.encoder.lamer_hubert import LamerHubertEncoder
from tests import families
from tests.export.tiny import speech

KINDS = ("data2vec", "wavlm-large")


def build(directory, **options):
    torch.manual_seed(0)
    encoder = LamerHubertEncoder(
        *(5, None, str(directory), {"allocation": "2,4", "rank": 2}),
        final_dim=8,
        **options,
    )
    with torch.no_grad():
        for name, parameter in encoder.named_parameters():
            if name.endswith("lora_B"):
                parameter.normal_(std=0.1, generator=torch.Generator().manual_seed(3))
    return encoder.train()


def logits_and_grads(encoder, dtype=None):
    waves, lengths = speech()
    mask = torch.zeros(3, 9, dtype=torch.bool)
    mask[:, ::2] = True
    logits = encoder(waves, lengths, mask, with_hidden=False, dtype=dtype).logits
    logits.float().square().mean().backward()
    return logits.detach(), [p.grad for p in encoder.parameters() if p.requires_grad]


@pytest.mark.parametrize("kind", KINDS)
def test_gradient_checkpointing_gives_the_same_gradients(tmp_path, kind):
    families.write(tmp_path, kind)
    plain = logits_and_grads(build(tmp_path))
    again = logits_and_grads(build(tmp_path, gradient_checkpointing=True))
    assert torch.equal(plain[0], again[0])
    for ours, theirs in zip(again[1], plain[1], strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("kind", KINDS)
def test_frozen_weights_in_the_working_type_give_what_copies_give(tmp_path, kind):
    families.write(tmp_path, kind)
    copied, kept = build(tmp_path), build(tmp_path)
    kept.keep_frozen(torch.bfloat16)
    expected, _ = logits_and_grads(copied, torch.bfloat16)
    found, grads = logits_and_grads(kept, torch.bfloat16)
    assert all(grad.isfinite().all() for grad in grads)
    assert (found - expected).abs().mean() < 0.02 * expected.abs().mean()
