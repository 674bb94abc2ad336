"""``bin.extract``: the model's states in a file, written in one stream."""

import os

import kaldiio
import numpy as np
import pytest
import soundfile
import torch

import espnet2_lamer
from espnet2_lamer.bin.extract import main
from espnet2_lamer.convert.huggingface import save_huggingface
from espnet2_lamer.errors import RecipeError
from espnet2_lamer.export.features import npz_file, write_features
from tests.export.family import BIAS, build, speech


@pytest.fixture
def model(tmp_path):
    save_huggingface(build().wav2vec2, tmp_path / "hubert")
    return espnet2_lamer.load_model(tmp_path / "hubert")


@pytest.fixture
def corpus(tmp_path):
    """Three utterances, one of them stereo at 8 kHz, and their ``wav.scp``."""
    waves = dict(zip(("long", "middle", "short"), speech(), strict=True))
    for utt, wave in waves.items():
        soundfile.write(tmp_path / f"{utt}.wav", wave.numpy(), 16000, subtype="FLOAT")
    other = torch.randn(800, 2).numpy() / 4
    soundfile.write(tmp_path / "other.flac", other, 8000)
    lines = [f"utt_{utt} {tmp_path / utt}.wav\n" for utt in waves]
    (tmp_path / "wav.scp").write_text("".join(lines))
    return waves


def states_of(model, wave):
    return model.extract_features(wave[None], torch.tensor([len(wave)]))[0]


def test_each_layer_of_each_utterance_is_the_models(model, corpus, tmp_path):
    audio = [str(tmp_path / f"{utt}.wav") for utt in corpus]
    for layer in ("0", "2", "all"):
        main(
            [
                *audio,
                f"--model={tmp_path / 'hubert'}",
                f"--layer={layer}",
                f"--output={tmp_path / 'f.npz'}",
            ]
        )
        with np.load(tmp_path / "f.npz", allow_pickle=False) as found:
            assert sorted(found) == sorted(corpus)
            for utt, wave in corpus.items():
                states = states_of(model, wave)
                if layer == "all":
                    assert np.array_equal(found[utt], torch.cat(states).numpy())
                else:
                    assert np.array_equal(found[utt], states[int(layer)][0].numpy())


def test_an_ark_is_read_through_its_scp(model, corpus, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    main(
        [
            "--wav_scp=wav.scp",
            f"--model={tmp_path / 'hubert'}",
            "--layer=1",
            "--output=feats.ark",
            "--format=ark",
        ]
    )
    monkeypatch.chdir("/")
    by_name = kaldiio.load_scp(str(tmp_path / "feats.scp"))
    in_order = dict(kaldiio.load_ark(str(tmp_path / "feats.ark")))
    assert list(by_name) == list(in_order)
    assert sorted(by_name) == sorted(f"utt_{utt}" for utt in corpus)
    for utt, wave in corpus.items():
        states = states_of(model, wave)
        assert np.array_equal(by_name[f"utt_{utt}"], states[1][0].numpy())
        assert np.array_equal(in_order[f"utt_{utt}"], states[1][0].numpy())


def test_other_rates_and_channels_are_converted(model, corpus, tmp_path):
    write_features(
        model, 1, {"other": str(tmp_path / "other.flac")}, tmp_path / "f.npz"
    )
    assert np.load(tmp_path / "f.npz")["other"].shape == (4, 16)


def test_experts_are_part_of_the_features(corpus, tmp_path):
    model = build(BIAS)
    paths = {utt: str(tmp_path / f"{utt}.wav") for utt in corpus}
    write_features(model, 2, paths, tmp_path / "f.npz")
    states = states_of(model, corpus["long"])
    assert np.array_equal(np.load(tmp_path / "f.npz")["long"], states[2][0].numpy())


@pytest.mark.parametrize(
    "layer, file_format, message",
    [
        (3, "npz", "found 3, expected 'all' or a number from 0 .* to 2"),
        (-1, "npz", "found -1"),
        ("all", "ark", "use --format npz"),
    ],
)
def test_a_wrong_layer_or_format_is_refused_before_anything_is_read(
    tmp_path, layer, file_format, message
):
    with pytest.raises(RecipeError, match=message):
        write_features(build(), layer, {"u": "gone"}, tmp_path / "f", file_format)
    assert not (tmp_path / "f").exists()


def test_usage_is_checked(tmp_path, capsys):
    for extra in ([], ["a.wav", "--wav_scp=x"], ["a.wav", "--layer=last"]):
        with pytest.raises(SystemExit) as stop:
            main(["--model=x", "--layer=1", "--output=y", *extra])
        assert stop.value.code == 2
    with pytest.raises(RecipeError, match="is called 'a' too"):
        main(["x/a.wav", "y/a.wav", "--model=x", "--layer=1", "--output=y"])


@pytest.mark.parametrize("file_format", ["npz", "ark"])
def test_a_bad_utterance_is_named_and_nothing_appears(corpus, tmp_path, file_format):
    soundfile.write(tmp_path / "tiny.wav", np.linspace(-1, 1, 399), 16000)
    paths = {"long": str(tmp_path / "long.wav"), "bad": str(tmp_path / "tiny.wav")}
    before = sorted(os.listdir(tmp_path))
    with pytest.raises(RecipeError, match="'bad' has 399 samples .* at least 400"):
        write_features(build(), 1, paths, tmp_path / "out.x", file_format)
    with pytest.raises(RecipeError, match="utterance 'gone': file not found"):
        write_features(
            build(), 1, {"gone": "gone.wav"}, tmp_path / "out.x", file_format
        )
    assert sorted(os.listdir(tmp_path)) == before


def test_an_id_with_a_space_goes_into_an_npz_only(corpus, tmp_path):
    paths = {"a b": str(tmp_path / "long.wav")}
    write_features(build(), 1, paths, tmp_path / "f.npz")
    assert list(np.load(tmp_path / "f.npz")) == ["a b"]
    with pytest.raises(RecipeError, match="'a b' has a space"):
        write_features(build(), 1, paths, tmp_path / "f.ark", "ark")
    with pytest.raises(RecipeError, match="expected the ark"):
        write_features(build(), 1, {"a": paths["a b"]}, tmp_path / "f.scp", "ark")


def test_utterances_are_on_disk_as_soon_as_they_are_stored(tmp_path):
    with npz_file(tmp_path / "f.npz") as store:
        sizes = []
        for number in range(3):
            store(str(number), np.zeros((100_000, 4), np.float32))
            (temporary,) = tmp_path.glob(".f.npz.*")
            sizes.append(temporary.stat().st_size)
    assert all(size >= 1_600_000 * (n + 1) for n, size in enumerate(sizes))


def test_what_stage_2_refuses_has_no_features_and_what_it_changes_is_said(
    model, corpus, tmp_path, caplog
):
    """One rule: test_usable_speech.py compares the reasons."""
    name, output = f"--model={tmp_path / 'hubert'}", tmp_path / "f.npz"
    wave = corpus["long"].numpy()
    whole = tmp_path / "whole.wav"
    soundfile.write(whole, wave, 16000, subtype="PCM_16")
    cut = tmp_path / "cut.wav"
    cut.write_bytes(whole.read_bytes()[:-800])
    for rate in (16000, 48000):
        soundfile.write(tmp_path / f"silent{rate}.wav", np.zeros(rate), rate)
    for path in (cut, tmp_path / "silent16000.wav", tmp_path / "silent48000.wav"):
        with pytest.raises(RecipeError, match=f"{path}: utterance .*: (trunc|silent)"):
            main([str(path), name, "--layer=1", f"--output={output}"])
        assert not output.exists()
    opposite = np.stack([wave, -wave], axis=1)
    soundfile.write(tmp_path / "opposite.wav", opposite, 16000, subtype="FLOAT")
    audio = [str(tmp_path / "opposite.wav"), str(tmp_path / "long.wav")]
    main([*audio, name, "--layer=1", f"--output={output}"])
    with np.load(output) as found:
        assert np.array_equal(found["opposite"], found["long"])
    assert "opposite.wav: averaged, its channels cancel (opposite phase)" in caplog.text
