"""Features that are no use are refused where they are made and where they are read."""

import json

import numpy as np
import pytest
import soundfile
import torch

from espnet2_lamer.convert.load import load_hubert
from espnet2_lamer.errors import RecipeError
from espnet2_lamer.fileio.datadir import write_table
from espnet2_lamer.units.assign import assign_units
from espnet2_lamer.units.codebook import METADATA_KEYS, save_codebook, teacher_metadata
from espnet2_lamer.units.features import FeatureStore, dump_features
from espnet2_lamer.units.kmeans import KmeansConfig, learn_kmeans
from espnet2_lamer.units.teacher import HubertTeacher, load_teacher

_UTT = "utt07"


class _Wild:
    """A teacher that makes something of one utterance's features."""

    def __init__(self, teacher, samples, change):
        self._teacher, self._samples, self._change = teacher, samples, change

    def __getattr__(self, name):
        return getattr(self._teacher, name)

    def forward_batch(self, samples):
        features = self._teacher.forward_batch(samples)
        if samples.shape[1] == self._samples:
            features = self._change(features.clone())
        return features


def _spoil(features, value):
    features[0, 3, 2] = value
    return features


@pytest.fixture
def samples(speech):
    return soundfile.info(speech / f"{_UTT}.flac").frames


@pytest.mark.parametrize(
    "change, problem",
    [
        (lambda f: _spoil(f, torch.nan), "not finite"),
        (lambda f: _spoil(f, -torch.inf), "not finite"),
        (lambda f: _spoil(f, 1e30), "absurdly large"),
        (lambda f: 0 * f + 3, "are the same in all frames"),
    ],
)
def test_features_are_judged_by_utterance_where_they_are_made(
    speech, mfcc, codebook, samples, tmp_path, change, problem
):
    teacher = _Wild(mfcc, samples, change)
    message = f"{_UTT}.flac: utterance '{_UTT}': teacher mfcc .*{problem}"
    with pytest.raises(RecipeError, match=message):
        dump_features(teacher, speech / "wav.scp", tmp_path / "features")
    assert not (tmp_path / "features/index.json").exists()
    with pytest.raises(RecipeError, match=message):
        assign_units(teacher, codebook, speech / "wav.scp", tmp_path / "text.km")
    assert not (tmp_path / "text.km").exists()


def test_in_a_batch_the_bad_one_is_named(speech, mfcc, tmp_path, monkeypatch):
    monkeypatch.setattr(type(mfcc), "batch_samples", 10**6)
    noise = np.random.default_rng(0).uniform(-1, 1, (3, 8000))
    wavs = {f"u{n}": str(tmp_path / f"u{n}.wav") for n in range(3)}
    for path, one in zip(wavs.values(), noise, strict=True):
        soundfile.write(path, one, 16000)
    write_table(tmp_path / "wav.scp", wavs)

    def change(features):
        features[1] = torch.nan
        return features

    with pytest.raises(RecipeError, match=r"u1\.wav: utterance 'u1'"):
        teacher, output = _Wild(mfcc, 8000, change), tmp_path / "f"
        dump_features(teacher, tmp_path / "wav.scp", output, shard_utts=3)


@pytest.mark.parametrize("value", [np.nan, np.inf, 1e30])
def test_k_means_names_the_utterance_of_stored_features(speech, mfcc, tmp_path, value):
    features = tmp_path / "features"
    dump_features(mfcc, speech / "wav.scp", features, shard_utts=5)
    index = json.loads((features / "index.json").read_text())
    entry = index["shards"][1]
    utt, _, first, _ = next(row for row in entry["utts"] if row[0] == _UTT)
    stored = np.memmap(features / entry["file"], "<f4", "r+")
    stored[(first + 2) * index["dim"]] = value
    stored.flush()
    with pytest.raises(RecipeError, match=f"{entry['file']}: features of .*'{utt}'"):
        learn_kmeans(features, tmp_path / "codebook.npz", KmeansConfig(4, n_init=1))
    assert not (tmp_path / "codebook.npz").exists()
    assert len(FeatureStore(features).take(np.arange(3))) == 3


def test_a_teacher_of_nan_gives_no_units_whatever_the_codebook(
    speech, hubert_dirs, tmp_path
):
    model = load_hubert(hubert_dirs["layer_norm"])
    model.encoder.transformer.layers[0].attention.k_proj.bias.data.fill_(torch.nan)
    teacher = HubertTeacher("damaged", 2, "cpu", model, "0" * 64)
    centroids = np.random.default_rng(0).standard_normal((4, teacher.dim))
    metadata = dict.fromkeys(METADATA_KEYS) | teacher_metadata(teacher.identity)
    save_codebook(tmp_path / "codebook.npz", centroids, metadata | {"K": 4})
    files = tmp_path / "codebook.npz", speech / "wav.scp", tmp_path / "text.km"
    with pytest.raises(
        RecipeError, match="teacher damaged gives features .*not finite"
    ):
        assign_units(teacher, *files)
    assert not list(tmp_path.glob("text.km*json"))


def test_clips_whose_units_collapse_are_listed(tmp_path, caplog):
    rng = np.random.default_rng(0)
    tone = 0.3 * np.sin(np.arange(32000) * 2 * np.pi * 440 / 16000)
    signals = {"speech": rng.uniform(-1, 1, 32000), "tone": tone, "brief": tone[:8000]}
    wavs = {utt: str(tmp_path / f"{utt}.wav") for utt in signals}
    for utt, signal in signals.items():
        soundfile.write(wavs[utt], signal, 16000)
    write_table(tmp_path / "wav.scp", wavs)
    teacher = load_teacher("mfcc")
    dump_features(teacher, tmp_path / "wav.scp", tmp_path / "f")
    learn_kmeans(tmp_path / "f", tmp_path / "c.npz", KmeansConfig(8, n_init=1))

    # The tone's frames are one unit each, but for what normalisation leaves of them.
    class Flat(_Wild):
        def forward_batch(self, samples):
            features = self._teacher.forward_batch(samples)
            if np.abs(samples).max() < 0.5:
                features = features[:, :1] + 1e-4 * features
            return features

    output = tmp_path / "text.km"
    assign_units(
        Flat(teacher, 0, None), tmp_path / "c.npz", tmp_path / "wav.scp", output
    )
    header, *lines = (tmp_path / "text.km.collapsed.tsv").read_text().splitlines()
    assert header == "utt_id\tframes\tunits\tpath"
    (line,) = lines
    assert line.startswith("tone\t99\t") and line.endswith(wavs["tone"])
    assert "1 utterances have at most 2 units" in caplog.text
    # A list of other labels does not stay.
    signals["tone"] = rng.uniform(-1, 1, 31999)
    soundfile.write(wavs["tone"], signals["tone"], 16000)
    assign_units(teacher, tmp_path / "c.npz", tmp_path / "wav.scp", output)
    assert not (tmp_path / "text.km.collapsed.tsv").exists()
