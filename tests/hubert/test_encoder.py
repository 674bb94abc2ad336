"""The encoder's hidden states, and what its checkpoints hold, need and refuse."""

import math

import pytest
import torch

from espnet2_lamer.asr.encoder.lamer_hubert import GUARD
from espnet2_lamer.convert import load_hubert
from espnet2_lamer.errors import RecipeError
from espnet2_lamer.fileio.hashing import sha256_file
from espnet2_lamer.hubert.espnet_model import index_mask
from espnet2_lamer.layers import experts_off
from tests.tiny_hubert import MERGED

CONTROL = {"allocation": "0"}


def hidden(encoder, speech, lengths):
    """Final hidden states ``[B, T, D]`` and valid frames, nothing masked."""
    with torch.no_grad():
        return encoder.wav2vec2(speech, lengths)


def logits(encoder, batch):
    """Unit scores of every real frame, the masked ones first."""
    mask = index_mask(batch["mask_indices"], 9)
    with torch.no_grad():
        output = encoder(
            batch["speech"], batch["speech_lengths"], mask, with_unmasked=True
        )
    return torch.cat([output.logits, output.unmasked_logits])


def trained(encoder):
    return {n for n, p in encoder.named_parameters() if p.requires_grad}


def test_nan_in_waveform_padding_leaves_valid_hidden_states_unchanged(
    build_encoder, batch
):
    encoder = build_encoder().eval()
    for normalize in (True, False):
        encoder.wav2vec2.feature_extractor.normalize_waveform = normalize
        expected, _ = hidden(encoder, batch["speech"], batch["speech_lengths"])
        expected_logits = logits(encoder, batch)
        speech = batch["speech"].clone()
        speech[1, 2000:] = math.nan
        found, frames = hidden(encoder, speech, batch["speech_lengths"])
        assert frames.tolist() == [9, 6]
        assert torch.equal(found[0], expected[0])
        assert torch.equal(found[1, :6], expected[1, :6])
        assert torch.equal(logits(encoder, batch | {"speech": speech}), expected_logits)


@pytest.mark.parametrize("lamer", [{"allocation": "2,4", "rank": 2}, MERGED])
def test_a_padded_batch_equals_its_utterances_one_by_one(build_encoder, batch, lamer):
    encoder = build_encoder(lamer=lamer).eval()
    together, _ = hidden(encoder, batch["speech"], batch["speech_lengths"])
    for row, (samples, frames) in enumerate(((3200, 9), (2000, 6))):
        alone, _ = hidden(
            encoder, batch["speech"][row : row + 1, :samples], torch.tensor([samples])
        )
        torch.testing.assert_close(
            together[row, :frames], alone[0], rtol=1e-5, atol=1e-5
        )


@pytest.mark.parametrize("lamer", [{"allocation": "2,4", "rank": 2}, None])
def test_before_training_hidden_states_are_the_bases(build_encoder, base, batch, lamer):
    encoder = build_encoder(base, lamer, fill=False).eval()
    inputs = batch["speech"], batch["speech_lengths"]
    hubert = load_hubert(base)
    found, _ = hidden(encoder, *inputs)
    torch.testing.assert_close(found, hubert(*inputs)[0], rtol=1e-5, atol=1e-5)
    mask = torch.zeros(2, 9, dtype=torch.bool)
    trained = encoder(*inputs, mask).hidden
    for row, frames in enumerate((9, 6)):
        own = trained[row, :frames], found[row, :frames]
        torch.testing.assert_close(*own, rtol=1e-5, atol=1e-5)
    if lamer is not None:
        # The same network without experts, to the bit.
        with experts_off(encoder):
            assert torch.equal(encoder(*inputs, mask).hidden, trained)
    assert torch.equal(
        encoder.hubert_pretrain_model.mask_generator.mask_embedding,
        hubert.mask_embedding,
    )


def test_logits_belong_to_masked_frames_in_row_major_order_and_to_the_real_others(
    build_encoder, batch
):
    encoder = build_encoder().eval()
    head = encoder.hubert_pretrain_model.logit_generator
    mask = torch.zeros(2, 9, dtype=torch.bool)
    mask[0, [2, 5]] = mask[1, 1] = True
    # Without replacing anything, so that the hidden states are known.
    encoder.hubert_pretrain_model.mask_generator.forward = lambda x, mask: x
    output = encoder(batch["speech"], batch["speech_lengths"], mask, True)
    states, _ = hidden(encoder, batch["speech"], batch["speech_lengths"])
    rows = [states[0, 2], states[0, 5], states[1, 1]]
    torch.testing.assert_close(output.logits, head(torch.stack(rows)))
    real = torch.arange(9) < torch.tensor([9, 6])[:, None]
    assert torch.equal(output.real, real)
    torch.testing.assert_close(output.unmasked_logits, head(states[real & ~mask]))
    assert (
        encoder(batch["speech"], batch["speech_lengths"], mask).unmasked_logits is None
    )


def test_masked_frames_enter_as_the_mask_embedding(build_encoder, batch):
    encoder = build_encoder().eval()
    inputs = batch["speech"], batch["speech_lengths"]
    everything = torch.ones(2, 9, dtype=torch.bool)
    other = batch["speech"].flip(1)
    with torch.no_grad():
        # Where every frame is masked, the speech does not matter.
        first = encoder(*inputs, everything).logits
        assert torch.equal(first, encoder(other, inputs[1], everything).logits)


def test_a_checkpoint_holds_what_trains_and_the_hash_of_the_base(build_encoder, base):
    encoder = build_encoder(base, {"allocation": "2,4", "rank": 2, "balance": "bias"})
    state = encoder.state_dict()
    biases = {n for n, _ in encoder.named_buffers() if "routers." in n}
    assert set(state) == trained(encoder) | biases | {"base_sha256", GUARD}
    assert {name.rpartition(".")[2] for name in biases} == {"selection_bias", "load"}
    digest = sha256_file(f"{base}/model.safetensors")
    assert bytes(state["base_sha256"].tolist()).hex() == digest


def test_a_checkpoint_reloads_strictly_into_an_encoder_on_the_same_base(
    build_encoder, base, batch
):
    encoder = build_encoder(base).eval()
    state = {k: v.clone() for k, v in encoder.state_dict().items()}
    other = build_encoder(base, fill=False).eval()
    other.load_state_dict(state, strict=True)
    assert torch.equal(logits(other, batch), logits(encoder, batch))


def test_a_checkpoint_of_another_base_is_refused(build_encoder, base, other_base):
    state = build_encoder(base).state_dict()
    with pytest.raises(RecipeError, match="base: the checkpoint was trained on a base"):
        build_encoder(other_base).load_state_dict(state, strict=False)


def test_a_checkpoint_without_its_base_is_refused_even_when_not_strict(
    build_encoder, base
):
    state = build_encoder(base).state_dict()
    with pytest.raises(RecipeError, match="lacks .* tensors .* set encoder_conf.base"):
        build_encoder().load_state_dict(state, strict=False)


def test_a_checkpoint_that_lacks_an_expert_is_refused(build_encoder, base):
    encoder = build_encoder(base)
    state = encoder.state_dict()
    name = next(key for key in state if key.endswith("lora_A"))
    del state[name]
    with pytest.raises(RecipeError, match=f"lacks 1 tensors .* {name}"):
        encoder.load_state_dict(state, strict=False)


def test_a_checkpoint_of_another_allocation_is_refused_even_when_not_strict(
    build_encoder, base
):
    state = build_encoder(base).state_dict()
    for lamer in (CONTROL, {"allocation": "2,0", "rank": 2}):
        with pytest.raises(RecipeError, match="has .* tensors that the encoder lacks"):
            build_encoder(base, lamer).load_state_dict(state, strict=False)


def test_writing_the_base_gives_a_model_that_needs_none(build_encoder, base, batch):
    encoder = build_encoder(base).eval()
    encoder.write_base = True
    state = encoder.state_dict()
    names = {n for n, _ in (*encoder.named_parameters(), *encoder.named_buffers())}
    assert set(state) == names
    # Without a base the architecture comes from the config, the weights from the file.
    free = build_encoder(fill=False).eval()
    free.load_state_dict(state, strict=True)
    assert torch.equal(logits(free, batch), logits(encoder, batch))


@pytest.mark.parametrize("from_file", [True, False])
def test_full_training_keeps_every_key(build_encoder, base, from_file):
    encoder = build_encoder(base if from_file else None, lamer=None)
    state = encoder.state_dict()
    assert set(state) == {n for n, _ in encoder.named_parameters()}
    # The base's mask embedding too: everything trains.
    assert trained(encoder) == set(state)
    encoder.load_state_dict(state, strict=True)


def test_allocation_zero_trains_the_head_alone(build_encoder, base, other_base):
    head = {
        "hubert_pretrain_model.logit_generator." + name
        for name in ("label_embeddings", "final_proj.weight", "final_proj.bias")
    }
    encoder = build_encoder(base, CONTROL)
    assert trained(encoder) == head
    assert set(encoder.state_dict()) == head | {"base_sha256", GUARD}
    # A base without mask embedding: a new one trains and counts as head.
    mask = "hubert_pretrain_model.mask_generator.mask_embedding"
    assert trained(build_encoder(other_base, CONTROL)) == head | {mask}


def test_parameter_report_counts_the_head(build_encoder, base, other_base):
    from espnet2_lamer.layers import parameter_report

    head = 6 * 8 + 16 * 8 + 8
    for source, extra in ((base, 0), (other_base, 16)):
        found = parameter_report(build_encoder(source))
        lora = (2 + 4) * 2 * (16 + 32) * 2  # experts x rank x (D + F) x projections
        assert found["lora"] == lora
        assert found["router"] == (2 + 4) * 16
        assert found["head"] == head + extra
        assert found["trainable"] == lora + 96 + head + extra
        assert found["active"] == 2 * 2 * 2 * (16 + 32) * 2


def test_impossible_configurations_are_refused(build_encoder, tmp_path):
    from espnet2_lamer.asr.encoder.lamer_hubert import LamerHubertEncoder

    with pytest.raises(RecipeError, match="num_classes: found null"):
        LamerHubertEncoder(num_classes=None)
    with pytest.raises(RecipeError, match=f"{tmp_path}: no config.json"):
        build_encoder(str(tmp_path))
    with pytest.raises(ValueError, match="3 groups, but 2 layers"):
        build_encoder(lamer={"allocation": "1,2,3"})
