"""A frozen base in the type that a training computes in, and what depends on it."""

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from espnet2_lamer.hubert.espnet_model import index_mask
from tests.tiny_hubert import MERGED

CASTS = (torch.ops.aten._to_copy.default,)


class Casts(TorchDispatchMode):
    """Sizes of what changes its type."""

    def __init__(self):
        super().__init__()
        self.sizes = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func in CASTS and args[0].is_floating_point():
            self.sizes.append(args[0].numel())
        return func(*args, **(kwargs or {}))


def pair(build_model, base, **options):
    """A model as it is, and one whose frozen weights are prepared."""
    models = [build_model(base, **options) for _ in range(2)]
    models[1].keep_frozen()
    return models


def test_states_keep_their_keys_and_nothing_changes_in_float32(
    build_model, base, batch
):
    plain, kept = (model.train() for model in pair(build_model, base))
    before, after = plain.encoder.full_state(), kept.encoder.full_state()
    assert before.keys() == after.keys()
    assert all(torch.equal(before[key], after[key]) for key in before)
    assert plain.state_dict().keys() == kept.state_dict().keys()
    losses = [model(**batch)[0] for model in (plain, kept)]
    torch.testing.assert_close(*losses, rtol=1e-6, atol=1e-6)
    for loss in losses:
        loss.backward()
    for ours, theirs in zip(kept.parameters(), plain.parameters(), strict=True):
        assert (ours.grad is None) == (theirs.grad is None)
        if ours.grad is not None:
            torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-4, atol=1e-6)


def test_frozen_weights_take_the_type_and_are_not_copied_again(
    build_model, base, batch
):
    conf = {"amp_dtype": "bf16"}
    plain, kept = (m.train() for m in pair(build_model, base, model_conf=conf))
    positions = kept.encoder.wav2vec2.encoder.transformer.pos_conv_embed
    own = {id(p) for p in positions.parameters()}
    for parameter in kept.parameters():
        frozen = not parameter.requires_grad and id(parameter) not in own
        assert parameter.dtype == (torch.bfloat16 if frozen else torch.float32)
    sizes = {p.numel() for p in kept.parameters() if not p.requires_grad}
    sizes -= {p.numel() for p in kept.parameters() if p.requires_grad}
    with Casts() as casts:
        kept(**batch)
    assert not sizes & set(casts.sizes)
    losses = [float(model(**batch)[0]) for model in (plain, kept)]
    assert losses[0] == pytest.approx(losses[1], rel=0.01)
    # What it writes loads into a model that prepared nothing, and the other way round.
    plain.load_state_dict(kept.state_dict())
    kept.load_state_dict(plain.state_dict())
    again = [float(model(**batch)[0]) for model in (plain, kept)]
    assert again == pytest.approx(losses, rel=1e-5)


def test_a_base_that_checkpoints_hold_stays_as_it_is(build_model, batch):
    model = build_model(model_conf={"amp_dtype": "bf16"})
    before = {key: value.clone() for key, value in model.state_dict().items()}
    model.keep_frozen()
    after = model.state_dict()
    assert all(torch.equal(before[key], after[key]) for key in before)
    assert all(p.dtype == torch.float32 for p in model.parameters())


def test_logits_and_gradients_need_no_more_than_masked_frames(
    build_encoder, base, batch
):
    encoder = build_encoder(base)
    mask = index_mask(batch["mask_indices"], 9)
    given = batch["speech"], batch["speech_lengths"], mask
    results = []
    for with_hidden in (True, False):
        encoder.zero_grad()
        output = encoder(*given, with_hidden=with_hidden)
        assert (output.rows is None) != with_hidden
        output.logits.square().sum().backward()
        grads = [p.grad.clone() for p in encoder.parameters() if p.grad is not None]
        results.append([output.logits.detach(), *grads])
    for ours, theirs in zip(*results, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-6)


def test_positions_of_frames_change_nothing_but_what_is_asked(build_model, base, batch):
    model = build_model(base).eval()
    mask = index_mask(batch["mask_indices"], 9)
    real = torch.arange(9) < torch.tensor([9, 6])[:, None]
    known = {"real_frames": real.flatten().nonzero().squeeze(1)}
    known["masked_frames"] = mask.flatten().nonzero().squeeze(1)
    assert torch.equal(model(**batch, **known)[0], model(**batch)[0])


@pytest.mark.parametrize("lamer", [{"allocation": "2,4", "rank": 2}, MERGED])
@pytest.mark.parametrize("padded", [True, False])
def test_from_features_to_logits_it_is_one_graph(
    build_model, base, batch, padded, lamer
):
    if not padded:
        batch = {key: value[:1] for key, value in batch.items()}
    model = build_model(base, lamer).train()
    expected, _, _ = model(**batch)
    expected.backward()
    grads = [p.grad.clone() for p in model.parameters() if p.grad is not None]
    model.zero_grad()
    torch._dynamo.reset()
    encoder = model.encoder
    encoder.compiles = True
    encoder.__dict__["_compiled"] = torch.compile(
        encoder._network, dynamic=True, fullgraph=True, backend="aot_eager"
    )
    loss, _, _ = model(**batch)
    loss.backward()
    torch._dynamo.reset()
    torch.testing.assert_close(loss, expected)
    found = [p.grad for p in model.parameters() if p.grad is not None]
    for ours, theirs in zip(found, grads, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-6)


def test_states_are_the_bases_whatever_type_it_was_put_into(build_model, base, batch):
    from espnet2_lamer.asr.upstream import hidden_states

    plain, kept = pair(build_model, base, model_conf={"amp_dtype": "bf16"})
    wavs = batch["speech"]
    plain.eval(), kept.eval()
    with torch.no_grad():
        expected, _ = hidden_states(plain.encoder.wav2vec2, wavs, None, True)
        (exact,) = plain.encoder.states([wavs], torch.float32)
        (rounded,) = kept.encoder.states([wavs], torch.float32)
    for ours, theirs, half in zip(exact, expected, rounded, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)
        assert half.dtype == torch.float32
        assert (half - theirs).norm() / theirs.norm() < 0.02
