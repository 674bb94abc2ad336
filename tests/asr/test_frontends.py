"""Both frontends give a frozen upstream's states on S3PRL's time grid."""

import pytest
import torch
from torch import nn

from espnet2_lamer.asr.frontend.states import (
    LayerSum,
    StoredFeaturesFrontend,
    stretch_to_grid,
    upstream_states,
)
from espnet2_lamer.asr.upstream import Upstream
from espnet2_lamer.errors import RecipeError
from espnet2_lamer.tasks.upstream_frontend import LamerUpstreamFrontend
from tests.tiny_hubert import ARCHITECTURE

TINY = {
    "hubert": {
        **ARCHITECTURE,
        "extractor_mode": "layer_norm",
        # A frozen upstream must not apply it.
        "encoder_dropout": 0.5,
    },
    "lamer": None,
    "final_norm": True,
}
SAMPLES = [16000, 16399, 9999, 400]


def build_frontend(layer="all", **changes):
    torch.manual_seed(1)
    conf = {**TINY, "hubert": {**TINY["hubert"], **changes}}
    return LamerUpstreamFrontend(upstream_conf=conf, layer=layer)


def noise_batch():
    generator = torch.Generator().manual_seed(0)
    wavs = torch.zeros(len(SAMPLES), max(SAMPLES))
    for row, count in zip(wavs, SAMPLES, strict=True):
        row[:count] = torch.randn(count, generator=generator)
    return wavs, torch.tensor(SAMPLES)


@pytest.mark.parametrize("mode", ["layer_norm", "group_norm"])
def test_features_do_not_depend_on_the_neighbours_in_a_padded_batch(mode):
    frontend = build_frontend(layer="all", extractor_mode=mode)
    wavs, lengths = noise_batch()
    batched, frames = frontend(wavs, lengths)
    for row, (wav, count) in enumerate(zip(wavs, SAMPLES, strict=True)):
        alone, alone_frames = frontend(wav[None, :count], lengths[row : row + 1])
        assert frames[row] == alone_frames[0]
        torch.testing.assert_close(
            batched[row, : frames[row]], alone[0], rtol=1e-4, atol=1e-5
        )
        assert batched[row, frames[row] :].abs().sum() == 0


def test_lengths_are_samples_over_320_rounded_up_with_the_last_frame_repeated():
    frontend = build_frontend(layer=1)
    wavs, lengths = noise_batch()
    features, frames = frontend(wavs, lengths)
    assert frames.tolist() == [-(-count // 320) for count in SAMPLES]
    hidden, conv_frames = frontend.upstream.extract_features(wavs, lengths)
    # 16399 samples: 50 convolution frames become 52.
    assert (conv_frames[1], frames[1]) == (50, 52)
    torch.testing.assert_close(features[1, :50], hidden[1][1, :50])
    for t in (50, 51):
        torch.testing.assert_close(features[1, t], hidden[1][1, 49])


def test_stretching_never_reads_another_frame_than_the_utterances_own_last():
    states = torch.full((1, 3, 2), float("nan"))
    states[0, :1] = torch.tensor([1.0, 2.0])
    stretched, lengths = stretch_to_grid(states, torch.tensor([1]), torch.tensor([700]))
    assert lengths.tolist() == [3]
    assert stretched.tolist() == [[[1.0, 2.0]] * 3]


def test_layer_sum_starts_as_the_mean_and_follows_softmax():
    layer_sum = LayerSum(3, 2)
    states = torch.randn(1, 4, 6)
    parts = states.unflatten(-1, (3, 2))
    torch.testing.assert_close(layer_sum(states), parts.mean(2))
    with torch.no_grad():
        layer_sum.weights.copy_(torch.tensor([0.0, 1.0, -1.0]))
    shares = torch.tensor([0.0, 1.0, -1.0]).exp()
    shares /= shares.sum()
    torch.testing.assert_close(layer_sum(states), (parts * shares[:, None]).sum(2))


@pytest.mark.parametrize("layer", [0, 2, "all"])
def test_stored_states_give_what_the_upstream_frontend_gives(layer):
    live = build_frontend(layer=layer)
    wavs, lengths = noise_batch()
    states, frames = upstream_states(live.upstream, wavs, lengths, layer)
    stored = StoredFeaturesFrontend(dim=16, num_states=3 if layer == "all" else 1)
    if layer == "all":
        with torch.no_grad():
            for frontend in (live, stored):
                frontend.layer_sum.weights.copy_(torch.tensor([0.3, -0.2, 0.9]))
    assert stored.output_size() == live.output_size() == 16
    expected, expected_frames = live(wavs, lengths)
    found, found_frames = stored(states, frames)
    assert found_frames.tolist() == expected_frames.tolist()
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-6)


def test_the_head_loads_from_either_frontend():
    live, stored = build_frontend("all"), StoredFeaturesFrontend(16, 3)
    head = {k for k in live.state_dict() if not k.startswith("upstream.")}
    assert head == set(stored.state_dict()) == {"layer_sum.weights"}


def test_upstream_stays_in_eval_mode_and_gets_no_gradient():
    frontend = build_frontend("all")
    model = nn.Sequential(frontend).train()
    assert frontend.training
    assert not any(m.training for m in frontend.upstream.modules())
    wavs, lengths = noise_batch()
    first, _ = model[0](wavs, lengths)
    second, _ = model[0](wavs, lengths)
    assert torch.equal(first, second)
    first.sum().backward()
    assert all(p.grad is None for p in frontend.upstream.parameters())
    assert not any(p.requires_grad for p in frontend.upstream.parameters())
    assert frontend.layer_sum.weights.grad is not None


def test_features_are_fp32_under_autocast():
    frontend = build_frontend(1)
    wavs, lengths = noise_batch()
    expected, _ = frontend(wavs, lengths)
    with torch.autocast("cpu", torch.bfloat16):
        found, _ = frontend(wavs, lengths)
    assert torch.equal(found, expected)


def test_wrong_configurations_name_the_key():
    with pytest.raises(RecipeError, match="layer: found 3, expected 'all' or a number"):
        build_frontend(3)
    with pytest.raises(RecipeError, match="fs: found '8k'"):
        LamerUpstreamFrontend(upstream_conf=TINY, fs="8k")
    with pytest.raises(RecipeError, match="exactly one of upstream"):
        LamerUpstreamFrontend()
    with pytest.raises(RecipeError, match="399 samples"):
        build_frontend(0)(torch.zeros(1, 399), torch.tensor([399]))
    with pytest.raises(ValueError, match="expected 2 states of 16 values"):
        StoredFeaturesFrontend(16, 2)(torch.zeros(1, 3, 16), torch.tensor([3]))


def test_a_checkpoint_without_the_upstream_is_refused_even_when_not_strict():
    frontend = build_frontend("all")
    state = {k: v for k, v in frontend.state_dict().items() if "upstream" not in k}
    with pytest.raises(RecipeError, match="weights of the upstream are missing"):
        frontend.load_state_dict(state, strict=False)
    frontend.load_state_dict(build_frontend("all").state_dict())


def test_a_source_is_loaded_with_its_weights(monkeypatch):
    torch.manual_seed(3)
    source = Upstream.from_architecture(TINY)
    monkeypatch.setattr("espnet2_lamer.upstream.load_model", lambda path: source)
    frontend = LamerUpstreamFrontend(upstream="somewhere", layer=2, fs="16k")
    assert frontend.upstream is source
