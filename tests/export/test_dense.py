"""The dense form: the formula, where it is exact, and how its error is measured."""

import json

import pytest
import soundfile
import torch

import espnet2_lamer
from espnet2_lamer.errors import RecipeError
from espnet2_lamer.export.dense import (
    deviation,
    language_speech,
    mean_gates,
    merge_experts,
    write_dense,
)
from espnet2_lamer.layers import experts_off
from tests.export.family import BIAS, build, speech
from tests.tiny_hubert import MERGED

PROJECTION = BIAS | {"router": "projection", "alpha": 3.0}


def ffns(upstream):
    return [x.feed_forward for x in upstream.wav2vec2.encoder.transformer.layers]


@pytest.mark.parametrize("lamer", [BIAS, PROJECTION], ids=["ffn", "projection"])
def test_a_merged_weight_is_the_base_plus_experts_times_mean_gates(lamer):
    routed = build(lamer)
    gates = mean_gates(routed, speech(), "eng")
    plain = merge_experts(routed, gates)
    assert plain.lamer is None
    for layer, (old, new) in enumerate(zip(ffns(routed), ffns(plain), strict=True)):
        for name in ("intermediate_dense", "output_dense"):
            linear = getattr(old, name)
            expected = linear.base.weight.double()
            router = "ffn" if lamer is BIAS else name
            for k, gate in enumerate(gates[layer, router]):
                b = linear.lora_B[:, 2 * k : 2 * k + 2].double()
                expected = (
                    expected + linear.scale * gate * b @ linear.lora_A[k].double()
                )
            found = getattr(new, name)
            torch.testing.assert_close(found.weight, expected.float())
            assert torch.equal(found.bias, linear.base.bias)


def test_averaged_experts_are_averaged_before_they_are_multiplied():
    routed = build(MERGED | {"alpha": 4.0})
    wave = speech()[0]
    plain = merge_experts(routed, mean_gates(routed, [wave], "eng"))
    states, _ = routed.extract_features(wave[None])
    found, _ = plain.extract_features(wave[None])
    with experts_off(routed):
        base, _ = routed.extract_features(wave[None])
    assert (states[-1] - base[-1]).norm() > 1e-2 * base[-1].norm()
    # Of one utterance the mean is its own: nothing is approximated.
    for ours, theirs in zip(found, states, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)


def test_mean_gates_are_means_over_all_frames():
    routed = build(BIAS)
    sums, frames = 0, 0
    inputs = []
    layer = ffns(routed)[1]
    layer.register_forward_pre_hook(lambda module, args: inputs.append(args[0]))
    gates = mean_gates(routed, speech(), "eng")
    for x in inputs:
        gate, _ = layer.routers["ffn"](x)
        sums, frames = sums + gate.double().sum((0, 1)), frames + x.shape[1]
    assert frames == 9 + 6 + 1
    torch.testing.assert_close(gates[1, "ffn"], sums / frames)


@pytest.mark.parametrize(
    "lamer",
    [
        {"allocation": 1, "rank": 2},
        {"allocation": 3, "rank": 2, "top_k": None},
    ],
    ids=["one_expert", "equal_gates"],
)
def test_it_is_exact_where_gates_are_the_same_for_every_frame(lamer):
    routed = build(lamer)
    for ffn in ffns(routed):
        for router in ffn.routers.values():
            torch.nn.init.zeros_(router.weight)
    dense = merge_experts(routed, mean_gates(routed, speech(), "eng"))
    measured = deviation(routed, dense, speech(5))
    assert max(measured.dense) < 1e-5
    assert min(measured.base[1:]) > 1e-2
    assert (measured.utterances, measured.frames) == (3, 16)


def test_the_deviation_is_the_relative_error_over_all_frames():
    routed = build(BIAS)
    dense = merge_experts(routed, mean_gates(routed, speech(), "eng"))
    measured = deviation(routed, dense, speech(5))
    assert measured.dense[0] == measured.base[0] == 0.0
    for k in (1, 2):
        joined = []
        for model in (routed, dense):
            joined.append(
                torch.cat([model.extract_features(w[None])[0][k][0] for w in speech(5)])
            )
        with experts_off(routed):
            joined.append(
                torch.cat(
                    [routed.extract_features(w[None])[0][k][0] for w in speech(5)]
                )
            )
        scale = joined[0].norm()
        assert measured.dense[k] == pytest.approx(
            float((joined[1] - joined[0]).norm() / scale), rel=1e-4
        )
        assert measured.base[k] == pytest.approx(
            float((joined[2] - joined[0]).norm() / scale), rel=1e-4
        )
    assert measured.dense[2] > 1e-3


def test_what_cannot_be_merged_is_refused():
    beside = build({"allocation": 2, "rank": 2, "targets": ["ffn"]})
    with pytest.raises(RecipeError, match="which no Linear can hold"):
        merge_experts(beside, {})
    with pytest.raises(RecipeError, match="the model has no experts"):
        merge_experts(build(), {})


@pytest.fixture
def corpus(tmp_path):
    """Four utterances, two of them Mandarin."""
    lines, languages = [], []
    for number in range(4):
        path = tmp_path / f"u{number}.wav"
        soundfile.write(path, 0.1 * torch.randn(4000).numpy(), 16000)
        lines.append(f"u{number} {path}\n")
        languages.append(f"u{number} {'cmn' if number % 2 else 'eng'}\n")
    (tmp_path / "wav.scp").write_text("".join(lines))
    (tmp_path / "utt2lang").write_text("".join(languages))
    return tmp_path


def test_the_speech_is_of_the_language(corpus):
    def names(*args, **kwargs):
        paths = language_speech(corpus / "wav.scp", *args, **kwargs)
        return [path.rsplit("/", 1)[1] for path in paths]

    assert names("cmn") == ["u1.wav", "u3.wav"]
    assert names("cmn", at_most=1) == ["u1.wav"]
    with pytest.raises(RecipeError, match=r"'yue'; found \['cmn', 'eng'\]"):
        names("yue")
    (corpus / "utt2lang").unlink()
    assert len(names("yue")) == 4


def test_the_deviation_stands_in_card_and_config(corpus, caplog):
    routed = build(BIAS)
    speech = language_speech(corpus / "wav.scp", "cmn")
    with caplog.at_level("INFO"):
        measured = write_dense(routed, corpus / "dense", "cmn", speech)
    assert measured.table() in caplog.text
    assert measured.utterances == 1  # gates come from the other one
    assert measured.table() in (corpus / "dense" / "README.md").read_text()
    config = json.loads((corpus / "dense" / "config.json").read_text())
    assert config["model_type"] == "hubert"
    assert config["lamer_dense"]["language"] == "cmn"
    assert config["lamer_dense"]["dense"] == measured.dense
    loaded = espnet2_lamer.load_model(corpus / "dense")
    waves = 0.1 * torch.randn(1, 4000)
    found, _ = loaded.extract_features(waves)
    routed_states, _ = routed.extract_features(waves)
    assert torch.equal(found[0], routed_states[0])
    assert not torch.equal(found[2], routed_states[2])
