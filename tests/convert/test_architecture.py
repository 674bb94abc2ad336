"""The rewritten convolution stack and the building of models."""

import math

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torchaudio.models import wav2vec2_model

from espnet2_lamer.convert.architecture import (
    LARGE,
    PositionalEmbedding,
    build_hubert,
    conv_rows,
    normalize_waveform,
)
from tests.tiny_hubert import ARCHITECTURE

TINY = {
    **ARCHITECTURE,
    "encoder_num_layers": 1,
    "encoder_ff_interm_features": 24,
}


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize(
    ("kernel", "stride"), [(10, 5), (3, 2), (2, 2), (5, 3), (1, 1), (2, 3), (7, 4)]
)
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("trains", [True, False])
def test_conv_rows_equal_conv1d_of_each_utterance(
    kernel, stride, bias, channels, trains
):
    torch.manual_seed(kernel)
    conv = nn.Conv1d(channels, 4, kernel, stride, bias=bias).requires_grad_(trains)
    for blocks in (3, 4, 7):
        length = blocks * stride
        if length < kernel:
            continue
        frames = (length - kernel) // stride + 1
        x = torch.randn(2, length, channels, requires_grad=trains)
        direction = torch.randn(2, frames, 4)
        found = conv_rows(x.flatten(0, 1), conv).unflatten(0, (2, -1))[:, :frames]
        expected = conv(x.transpose(1, 2)).transpose(1, 2)
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)
        if not trains:
            continue
        for ours, theirs in zip(
            torch.autograd.grad((found * direction).sum(), (x, conv.weight)),
            torch.autograd.grad((expected * direction).sum(), (x, conv.weight)),
            strict=True,
        ):
            torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("mode", ["layer_norm", "group_norm"])
def test_features_reach_no_further_than_their_frames_and_utterance(mode):
    model = build_hubert({**TINY, "extractor_mode": mode, "normalize_waveform": False})
    extractor = model.feature_extractor.eval().requires_grad_(False)
    wavs = torch.randn(2, 400 + 3 * 320 + 200)
    expected, _ = extractor(wavs)
    alone, _ = extractor(wavs[1:])
    torch.testing.assert_close(alone, expected[1:], rtol=1e-5, atol=1e-6)
    if mode == "layer_norm":
        # What is behind the last frame may be anything; so may the next utterance.
        wavs[0, 400 + 3 * 320 :] = wavs[1] = math.nan
        assert torch.equal(extractor(wavs)[0][0], expected[0])
        assert extractor(torch.randn(1, 399))[0].shape == (1, 0, expected.shape[-1])


@pytest.mark.parametrize("shapes", [[(4, 1), (3, 2)], [(10, 5), (9, 2), (2, 2)]])
def test_kernels_of_more_than_two_strides_are_convolved_as_torchaudio_does(shapes):
    layers = [[6, *shape] for shape in shapes]
    options = {**TINY, "extractor_conv_layer_config": layers}
    options["extractor_mode"] = "layer_norm"
    model = build_hubert({**options, "normalize_waveform": False}).eval()
    reference = wav2vec2_model(**(LARGE | options), aux_num_out=None).eval()
    reference.load_state_dict(model.state_dict())
    wavs, lengths = torch.randn(2, 700), torch.tensor([700, 333])
    with torch.no_grad():
        for ours, theirs in zip(
            model.feature_extractor(wavs, lengths),
            reference.feature_extractor(wavs, lengths),
            strict=True,
        ):
            torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("mode", ["layer_norm", "group_norm"])
@pytest.mark.parametrize("bias", [True, False])
def test_the_extractor_equals_torchaudios(mode, bias):
    options = {**TINY, "extractor_mode": mode, "extractor_conv_bias": bias}
    torch.manual_seed(0)
    model = build_hubert({**options, "normalize_waveform": False}).eval()
    reference = wav2vec2_model(**(LARGE | options), aux_num_out=None).eval()
    reference.load_state_dict(model.state_dict())
    for samples in (400, 719, 4001):
        wavs = torch.randn(2, samples)
        lengths = torch.tensor([samples, 400])
        with torch.no_grad():
            found, frames = model(wavs, lengths)
            expected, expected_frames = reference(wavs, lengths)
        assert frames.tolist() == expected_frames.tolist()
        assert frames.tolist() == [(samples - 400) // 320 + 1, 1]
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


def test_normalisation_sees_valid_samples_only():
    wavs = 3 * torch.randn(3, 1000) + 1
    lengths = torch.tensor([1000, 700, 1])
    padded = wavs.clone()
    for row, length in zip(padded, lengths, strict=True):
        row[length:] = math.nan
    found = normalize_waveform(padded, lengths)
    for row, (wav, length) in enumerate(zip(wavs, lengths.tolist(), strict=True)):
        expected = F.layer_norm(wav[:length], (length,))
        torch.testing.assert_close(found[row, :length], expected, rtol=1e-5, atol=1e-5)
        assert (found[row, length:] == 0).all()
    whole = torch.tensor([1000, 1000, 1000])
    torch.testing.assert_close(
        normalize_waveform(wavs, None),
        normalize_waveform(wavs, whole),
        rtol=1e-5,
        atol=1e-5,
    )


def test_silence_is_not_divided_by_zero():
    silence = torch.full((1, 500), 0.25)
    assert normalize_waveform(silence, torch.tensor([500])).abs().max() == 0


def test_loudness_and_offset_do_not_reach_a_normalising_model():
    model = build_hubert(TINY).eval()
    wavs = torch.randn(1, 4000)
    with torch.no_grad():
        first, _ = model(wavs)
        second, _ = model(0.5 * wavs + 3)
    torch.testing.assert_close(first, second, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("dim, groups, kernel", [(16, 2, 8), (48, 4, 64), (64, 4, 16)])
def test_positions_under_bf16_autocast_are_right_whatever_the_groups(
    dim, groups, kernel
):
    torch.manual_seed(0)
    module = PositionalEmbedding(dim, kernel, groups)
    x = torch.randn(2, 30, dim, requires_grad=True)
    inputs = [x, *module.parameters()]

    def run(autocast):
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            y = module(x)
        grads = torch.autograd.grad(y.float().pow(2).sum(), inputs)
        return [y.detach().float(), *grads]

    for found, expected in zip(run(True), run(False), strict=True):
        error = (found - expected).abs().mean() / expected.abs().mean()
        # bf16 keeps eight bits.
        assert error < 0.02


def test_positions_equal_torchaudios_in_float32():
    reference = wav2vec2_model(**(LARGE | TINY), aux_num_out=None)
    reference = reference.encoder.transformer.pos_conv_embed
    ours = PositionalEmbedding(16, 8, 2)
    ours.load_state_dict(reference.state_dict())
    x = torch.randn(2, 30, 16)
    assert torch.equal(ours(x), reference(x))


def test_a_model_knows_its_complete_architecture():
    model = build_hubert(TINY)
    assert model.architecture == LARGE | TINY | {"normalize_waveform": True}
    assert model.extractor_mode == "layer_norm"
    assert model.normalize_waveform is True
    assert model.mask_embedding is None


def test_an_unknown_architecture_key_is_refused():
    with pytest.raises(ValueError, match=r"unknown architecture keys \['layers'\]"):
        build_hubert({"layers": 3})


def test_the_default_architecture_is_torchaudios_hubert_large_with_biases():
    from torchaudio.models import hubert_large

    with torch.device("meta"):
        theirs = hubert_large().state_dict()
        ours = build_hubert({}).state_dict()
    biases = {f"feature_extractor.conv_layers.{n}.conv.bias" for n in range(7)}
    assert set(ours) - set(theirs) == biases
    for key, value in theirs.items():
        assert ours[key].shape == value.shape
