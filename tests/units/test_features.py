"""The feature dump: index, sampling, resuming; and reading it back in blocks."""

import json
import os
import shutil

import numpy as np
import pytest
import soundfile

from espnet2_lamer.constants import num_frames
from espnet2_lamer.data.speech import read_speech
from espnet2_lamer.errors import RecipeError
from espnet2_lamer.fileio.datadir import read_table, write_table
from espnet2_lamer.fileio.hashing import sha256_file
from espnet2_lamer.fileio.shards import shard_size
from espnet2_lamer.units import extractor as extractor_module
from espnet2_lamer.units.features import FeatureStore, dump_features, sample_utterances


def read_index(directory):
    return json.loads((directory / "index.json").read_text())


def files_of(directory):
    return {path.name: path.read_bytes() for path in directory.iterdir()}


def test_index_describes_every_utterance_and_shard(speech, mfcc, features):
    index = read_index(features)
    assert (index["dim"], index["dtype"]) == (39, "float32")
    langs = read_table(speech / "utt2lang")
    samples = read_table(speech / "utt2num_samples")
    wav_scp = read_table(speech / "wav.scp")
    seen = []
    for shard in index["shards"]:
        path = features / shard["file"]
        assert sha256_file(path) == shard["sha256"]
        data = np.fromfile(path, "<f4").reshape(shard["frames"], 39)
        end = 0
        for utt, lang, offset, length in shard["utts"]:
            assert lang == langs[utt]
            assert offset == end
            assert length == num_frames(int(samples[utt]))
            end = offset + length
            expected = mfcc.forward(read_speech(utt, wav_scp[utt]))
            np.testing.assert_array_equal(data[offset:end], expected)
            seen.append(utt)
        assert end == shard["frames"]
    assert seen == sorted(wav_scp)


def test_directory_holds_the_index_and_its_shards_only(features):
    listed = {shard["file"] for shard in read_index(features)["shards"]}
    assert set(files_of(features)) == listed | {"index.json"}


def test_two_processes_write_the_same_bytes_as_one(speech, mfcc, tmp_path):
    for nj in (1, 2):
        dump_features(mfcc, speech / "wav.scp", tmp_path / str(nj), shard_utts=5, nj=nj)
    assert files_of(tmp_path / "1") == files_of(tmp_path / "2")


def test_an_interrupted_dump_goes_on_with_what_is_missing(
    speech, mfcc, features, tmp_path, monkeypatch
):
    arguments = (mfcc, speech / "wav.scp", tmp_path)
    options = {"utt2lang": speech / "utt2lang", "shard_utts": 7}
    calls = []

    def stop_after(limit):
        def counted(utt, audio):
            calls.append(utt)
            if len(calls) > limit:
                raise KeyboardInterrupt
            return read_speech(utt, audio)

        return counted

    monkeypatch.setattr(extractor_module, "read_speech", stop_after(10))
    with pytest.raises(KeyboardInterrupt):
        dump_features(*arguments, **options)
    assert not (tmp_path / "index.json").exists()
    calls.clear()
    monkeypatch.setattr(extractor_module, "read_speech", stop_after(1000))
    dump_features(*arguments, **options)
    assert calls == sorted(read_table(speech / "wav.scp"))[7:]
    assert files_of(tmp_path) == files_of(features)


def test_a_finished_dump_is_not_done_again_until_its_inputs_change(
    speech, mfcc, tmp_path, monkeypatch
):
    dump_features(mfcc, speech / "wav.scp", tmp_path, shard_utts=9)
    calls = []
    monkeypatch.setattr(
        extractor_module,
        "read_speech",
        lambda *args: calls.append(args) or read_speech(*args),
    )
    dump_features(mfcc, speech / "wav.scp", tmp_path, shard_utts=9)
    assert not calls
    dump_features(mfcc, speech / "wav.scp", tmp_path, hours_per_lang=0.001)
    assert calls


def test_a_damaged_shard_is_made_again(speech, mfcc, tmp_path):
    dump_features(mfcc, speech / "wav.scp", tmp_path, shard_utts=9)
    before = files_of(tmp_path)
    shard = tmp_path / "00001.bin"
    shard.write_bytes(bytes(shard.stat().st_size))
    dump_features(mfcc, speech / "wav.scp", tmp_path, shard_utts=9)
    assert files_of(tmp_path) == before


def test_files_of_others_in_the_directory_are_kept(speech, mfcc, tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    (tmp_path / ".00000.bin.1.ab.tmp").write_text("left by a killed run")
    dump_features(mfcc, speech / "wav.scp", tmp_path, shard_utts=24)
    assert set(files_of(tmp_path)) == {"notes.txt", "index.json", "00000.bin"}


def test_a_small_corpus_has_shards_for_many_workers_and_a_large_one_full_ones():
    assert [shard_size(n, 100) for n in (0, 1, 32, 33, 320)] == [1, 1, 1, 2, 10]
    assert [shard_size(n, 100) for n in (3200, 3201, 10**6)] == [100] * 3


def test_sampling_takes_the_hours_of_each_language(speech):
    wav_scp, langs = read_table(speech / "wav.scp"), read_table(speech / "utt2lang")
    samples = {u: int(n) for u, n in read_table(speech / "utt2num_samples").items()}
    hours = 3 / 3600  # each language has about 8 s
    chosen = sample_utterances(wav_scp, langs, hours, seed=1)
    for lang in set(langs.values()):
        picked = [samples[utt] for utt in chosen if langs[utt] == lang]
        assert sum(picked) >= hours * 3600 * 16000
        assert sum(picked) - max(picked) < hours * 3600 * 16000
    assert chosen == sample_utterances(wav_scp, langs, hours, seed=1)
    assert chosen != sample_utterances(wav_scp, langs, hours, seed=2)


def test_a_language_with_too_little_speech_is_taken_whole(speech):
    wav_scp, langs = read_table(speech / "wav.scp"), read_table(speech / "utt2lang")
    assert sample_utterances(wav_scp, langs, 1.0, seed=0) == list(wav_scp)


@pytest.mark.parametrize("size", [100, 250, 5000])
def test_blocks_cover_every_frame_once_in_a_seeded_order(features, size):
    store = FeatureStore(features)
    everything = store.take(np.arange(store.frames))
    blocks = list(store.blocks(size, seed=3))
    assert all(len(block) <= size for block in blocks)
    joined = np.concatenate(blocks)
    # Within a block the order is the store's: a step of k-means takes it whole.
    assert np.array_equal(joined, everything) == (len(blocks) == 1)
    order = np.lexsort(everything.T)
    np.testing.assert_array_equal(joined[np.lexsort(joined.T)], everything[order])
    again = np.concatenate(list(store.blocks(size, seed=3)))
    np.testing.assert_array_equal(joined, again)
    other = np.concatenate(list(store.blocks(size, seed=3, epoch=1)))
    assert np.array_equal(joined, other) == (len(blocks) == 1)


def test_a_shard_may_be_listed_many_times(features, tmp_path):
    index = read_index(features)
    index["shards"] = index["shards"][:1] * 50
    file = index["shards"][0]["file"]
    (tmp_path / file).write_bytes((features / file).read_bytes())
    (tmp_path / "index.json").write_text(json.dumps(index))
    store = FeatureStore(tmp_path)
    assert store.frames == 50 * index["shards"][0]["frames"]
    assert sum(map(len, store.blocks(1000, seed=0))) == store.frames


def test_a_store_with_a_short_shard_is_refused(features, tmp_path):
    for name, data in files_of(features).items():
        (tmp_path / name).write_bytes(data if name == "index.json" else data[:-4])
    with pytest.raises(RecipeError, match="bytes, expected"):
        FeatureStore(tmp_path)


def test_missing_audio_is_named_before_anything_is_written(speech, mfcc, tmp_path):
    table = read_table(speech / "wav.scp") | {"uttxx": "/nowhere/x.flac"}
    write_table(tmp_path / "wav.scp", table)
    with pytest.raises(RecipeError, match="/nowhere/x.flac.*'uttxx'"):
        dump_features(mfcc, tmp_path / "wav.scp", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_an_utterance_without_language_is_named(speech, mfcc, tmp_path):
    langs = read_table(speech / "utt2lang")
    del langs["utt05"]
    write_table(tmp_path / "utt2lang", langs)
    with pytest.raises(RecipeError, match="no language for 1 .*'utt05'"):
        dump_features(
            mfcc, speech / "wav.scp", tmp_path / "o", utt2lang=tmp_path / "utt2lang"
        )


def test_a_replaced_clip_makes_its_shard_anew(speech, mfcc, tmp_path):
    table = {}
    for utt, path in read_table(speech / "wav.scp").items():
        table[utt] = str(tmp_path / f"{utt}.flac")
        shutil.copy(path, table[utt])
    write_table(tmp_path / "wav.scp", table)
    output = tmp_path / "features"

    def shards():
        dump_features(mfcc, tmp_path / "wav.scp", output, shard_utts=7)
        return {p.name: p.stat().st_mtime_ns for p in sorted(output.glob("*.bin"))}

    first = shards()
    os.utime(table["utt09"], (1, 1))
    assert shards() == first
    data, rate = soundfile.read(table["utt09"], dtype="int16")
    soundfile.write(table["utt09"], data[::-1], rate)
    changed = {name for name, time in shards().items() if time != first[name]}
    assert changed == {"00001.bin"}
