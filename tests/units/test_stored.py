"""Labels from features that stage 3 stored: the same bytes, of the same audio only."""

import json
import shutil

import numpy as np
import pytest
import soundfile

from espnet2_lamer.bin import assign_units as assign_units_bin
from espnet2_lamer.data.speech import audio_rows
from espnet2_lamer.errors import RecipeError
from espnet2_lamer.fileio.datadir import read_table, write_table
from espnet2_lamer.units.assign import assign_units
from espnet2_lamer.units.features import dump_features
from espnet2_lamer.units.kmeans import KmeansConfig, learn_kmeans
from espnet2_lamer.units.stored import stored_features
from espnet2_lamer.units.teacher import Teacher, load_teacher


@pytest.fixture
def audio(speech, tmp_path):
    """A copy of the speech whose files may be changed."""
    table = {}
    for utt, path in read_table(speech / "wav.scp").items():
        table[utt] = str(tmp_path / f"{utt}.flac")
        shutil.copy(path, table[utt])
    write_table(tmp_path / "wav.scp", table)
    return tmp_path / "wav.scp"


def dump_some(teacher, audio, speech, output):
    """About half of each language, in shards of three."""
    langs = {"utt2lang": speech / "utt2lang", "hours_per_lang": 0.001}
    dump_features(teacher, audio, output, **langs, shard_utts=3)
    index = json.loads((output / "index.json").read_text())
    return [[utt for utt, *_ in shard["utts"]] for shard in index["shards"]]


def heard(monkeypatch, teacher):
    """Number of samples of each utterance that the teacher hears from here on."""
    real, lengths = Teacher.forward_batch, []

    def note(self, samples, *more):
        lengths.append(samples.shape[1])
        return real(self, samples, *more)

    monkeypatch.setattr(Teacher, "forward_batch", note)
    return lengths


@pytest.mark.parametrize("name", ["mfcc", "layer_norm", "group_norm"])
def test_labels_are_the_same_bytes_and_the_teacher_hears_the_others_only(
    name, hubert_dirs, speech, audio, tmp_path, monkeypatch, caplog
):
    caplog.set_level("INFO")
    teacher = load_teacher(str(hubert_dirs[name]), 2) if name != "mfcc" else None
    teacher = teacher or load_teacher("mfcc")
    features = tmp_path / "features"
    stored = sum(dump_some(teacher, audio, speech, features), [])
    book = tmp_path / "codebook.npz"
    learn_kmeans(features, book, KmeansConfig(8, batch_size=200, max_passes=2))
    assign_units(teacher, book, audio, tmp_path / "computed.km")
    lengths = heard(monkeypatch, teacher)
    assign_units(teacher, book, audio, tmp_path / "stored.km", features=features)
    table = read_table(audio)
    left = [utt for utt in table if utt not in stored]
    assert 0 < len(left) < len(table)
    assert lengths == [soundfile.info(table[utt]).frames for utt in left]
    for end in ("", ".json"):
        computed = (tmp_path / f"computed.km{end}").read_bytes()
        assert (tmp_path / f"stored.km{end}").read_bytes() == computed
    assert f"features of {len(stored)} of {len(table)} utterances" in caplog.text


def test_a_shard_with_a_changed_clip_is_not_used(mfcc, speech, audio, tmp_path, caplog):
    caplog.set_level("INFO")
    shards = dump_some(mfcc, audio, speech, tmp_path / "features")
    table = read_table(audio)

    def usable():
        rows = audio_rows(table, table)
        found = stored_features(tmp_path / "features", mfcc, rows)
        return [utt for utt in table if found and utt in found]

    assert usable() == sum(shards, [])
    data, rate = soundfile.read(table[shards[0][1]], dtype="int16")
    soundfile.write(table[shards[0][1]], data[::-1], rate)
    assert usable() == sum(shards[1:], [])
    assert f"1 of {len(shards)} shards are of other audio" in caplog.text


def test_stored_features_are_the_computed_ones_to_the_bit(
    mfcc, speech, audio, tmp_path
):
    dump_some(mfcc, audio, speech, tmp_path / "features")
    table = read_table(audio)
    found = stored_features(tmp_path / "features", mfcc, audio_rows(table, table))
    for utt in filter(found.__contains__, table):
        expected = mfcc.forward(soundfile.read(table[utt], dtype="float32")[0])
        np.testing.assert_array_equal(found.frames(utt), expected)


def test_features_of_another_teacher_or_none_are_not_used(
    mfcc, hubert_dirs, speech, audio, tmp_path, caplog
):
    caplog.set_level("INFO")
    table = read_table(audio)
    rows = audio_rows(table, table)
    assert stored_features(tmp_path / "features", mfcc, rows) is None
    assert "no finished features there" in caplog.text
    dump_some(mfcc, audio, speech, tmp_path / "features")
    other = load_teacher(str(hubert_dirs["layer_norm"]), 1)
    assert stored_features(tmp_path / "features", other, rows) is None
    assert "of another teacher or layer" in caplog.text


def test_a_damaged_shard_is_refused_by_name(mfcc, speech, audio, codebook, tmp_path):
    dump_some(mfcc, audio, speech, tmp_path / "features")
    shard = tmp_path / "features" / "00000.bin"
    data = bytearray(shard.read_bytes())
    data[7] ^= 1
    shard.write_bytes(data)
    files = codebook, audio, tmp_path / "text.km"
    with pytest.raises(RecipeError, match="00000.bin.*run dump_features .stage 3"):
        assign_units(mfcc, *files, features=tmp_path / "features")


def test_the_command_reads_them_in_two_processes(
    mfcc, speech, audio, codebook, tmp_path, caplog
):
    caplog.set_level("INFO")
    dump_some(mfcc, audio, speech, tmp_path / "features")
    given = {"teacher": "mfcc", "codebook": codebook, "wav_scp": audio, "nj": 2}
    given |= {"output": tmp_path / "text.km", "features": tmp_path / "features"}
    assign_units_bin.main([f"--{name}={value}" for name, value in given.items()])
    assert "the teacher gives others" in caplog.text
    assign_units(mfcc, codebook, audio, tmp_path / "computed.km")
    computed = (tmp_path / "computed.km").read_bytes()
    assert (tmp_path / "text.km").read_bytes() == computed
