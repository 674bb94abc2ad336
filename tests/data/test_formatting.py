"""Formatted data directories."""

import pytest

from espnet2_lamer.data.formatting import collect_set
from espnet2_lamer.errors import RecipeError
from espnet2_lamer.fileio.datadir import read_table, write_table


def _format(data_dirs, tmp_path, **options):
    formatted = collect_set(data_dirs, tmp_path / "dump/audio", 2.0, 30.0, **options)
    formatted.write(tmp_path / "dump/set")
    return formatted.report


def test_only_2_to_30_seconds_stay_and_the_rest_is_counted(make_set, tmp_path):
    data = make_set("train", "eng", [1.99, 2.0, 15.0, 30.0, 30.01])
    report = _format([data], tmp_path)
    assert report["eng"]["utterances"] == 3
    assert report["eng"]["dropped_short"] == report["eng"]["dropped_long"] == 1
    assert report["eng"]["hours"] == pytest.approx(47 / 3600, abs=1e-4)
    samples = read_table(tmp_path / "dump/set/utt2num_samples")
    assert samples == {
        "eng_train_001": "32000",
        "eng_train_002": "240000",
        "eng_train_003": "480000",
    }


def test_directories_are_joined_with_their_tables(make_set, tmp_path):
    one = make_set("train", "eng", [3, 3], texts=["a b", ""])
    two = make_set("train", "cmn", [3], texts=["好"])
    (one / "phones.ctm").write_text("eng_train_000 1 0.1 0.2 a\ngone 1 0.1 0.2 a\n")
    write_table(two / "utt2source", {"cmn_train_000": "tv"})
    report = _format([one, two], tmp_path)
    out = tmp_path / "dump/set"
    assert set(report) == {"eng", "cmn"}
    utts = ["cmn_train_000", "eng_train_000", "eng_train_001"]
    for name in ("wav.scp", "utt2spk", "utt2lang", "utt2num_samples"):
        assert list(read_table(out / name)) == utts
    assert read_table(out / "text") == {"cmn_train_000": "好", "eng_train_000": "a b"}
    assert read_table(out / "utt2source") == {"cmn_train_000": "tv"}
    assert (out / "phones.ctm").read_text() == "eng_train_000 1 0.1 0.2 a\n"
    assert read_table(out / "spk2utt")["eng_spk"] == "eng_train_000 eng_train_001"


def test_8_khz_and_stereo_are_converted_and_counted(make_set, tmp_path):
    telephone = make_set("train", "eng", [3, 3], rate=8000)
    stereo = make_set("train", "cmn", [3], channels=2)
    report = _format([telephone, stereo], tmp_path)
    assert report["eng"]["resampled"] == 2 and report["eng"]["downmixed"] == 0
    assert report["cmn"]["resampled"] == 0 and report["cmn"]["downmixed"] == 1
    wavs = read_table(tmp_path / "dump/set/wav.scp")
    assert wavs["eng_train_000"].endswith("dump/audio/train_eng/eng_train_000.flac")
    assert read_table(tmp_path / "dump/set/utt2num_samples")["eng_train_000"] == "48000"


def test_the_same_input_gives_the_same_bytes(make_set, tmp_path):
    data = make_set("train", "eng", [3, 4], rate=8000, texts=["a", "b"])
    contents = []
    for nj in (1, 2):
        _format([data], tmp_path, nj=nj)
        files = sorted(p for p in (tmp_path / "dump").rglob("*") if p.is_file())
        contents.append([(p.name, p.read_bytes()) for p in files])
    assert contents[0] == contents[1]


def test_an_id_in_two_sets_is_named_with_both_files(make_set, tmp_path):
    one = make_set("train", "eng", [3])
    two = make_set("dev", "eng", [3])
    write_table(two / "wav.scp", read_table(one / "wav.scp"))
    with pytest.raises(RecipeError) as caught:
        _format([one, two], tmp_path)
    assert "'eng_train_000'" in str(caught.value)
    assert str(one / "wav.scp") in str(caught.value)
    assert str(two / "wav.scp") in str(caught.value)
    assert not (tmp_path / "dump").exists()


def test_nothing_left_names_the_set_and_the_limits(make_set, tmp_path):
    data = make_set("train", "eng", [1.0, 31.0])
    with pytest.raises(RecipeError, match="between 2 and 30 s.*1 shorter, 1 longer"):
        _format([data], tmp_path)
    assert not (tmp_path / "dump").exists()


def test_bad_audio_leaves_no_data_directory(make_set, tmp_path):
    data = make_set("train", "eng", [3, 3])
    (tmp_path / "audio/eng_train_001.flac").unlink()
    with pytest.raises(RecipeError, match="eng_train_001.*file not found"):
        _format([data], tmp_path)
    assert not (tmp_path / "dump/set").exists()


def test_an_utterance_without_language_is_refused(make_set, tmp_path):
    data = make_set("train", "eng", [3, 3])
    write_table(data / "utt2lang", {"eng_train_000": "eng"})
    with pytest.raises(RecipeError, match="utt2lang: no language for 1 .*_001"):
        _format([data], tmp_path)


def test_a_missing_set_is_named_with_what_makes_it(tmp_path):
    with pytest.raises(RecipeError, match="wav.scp: file not found.*data preparation"):
        _format([tmp_path / "data/train_eng"], tmp_path)
