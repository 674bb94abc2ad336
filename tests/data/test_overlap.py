"""Pretraining clips that are in an evaluation set are found."""

import shutil

import numpy as np
import pytest
import soundfile

from espnet2_lamer.data.audio import read_16k
from espnet2_lamer.data.audio_decoding import open_audio
from espnet2_lamer.data.audio_fingerprint import QUERY_STEP, fingerprint
from espnet2_lamer.data.overlap import (
    Clip,
    Overlap,
    clip_ids,
    evaluation_dirs,
    match_audio,
    match_names,
    normalised,
    overlap_counts,
    read_evaluation,
    write_overlaps,
)
from espnet2_lamer.data.sets import Utterance
from espnet2_lamer.fileio.datadir import write_table


def _found(clips, evaluation):
    return [
        (o.clip.utt_id, o.found.utt_id, o.by) for o in match_names(clips, evaluation)
    ]


@pytest.mark.parametrize(
    "utt_id, path, sure, likely",
    [
        ("eng-0001", "/a/common_voice_en_123.mp3", {"common_voice_en_123"}, set()),
        ("spk_common_voice_zh-HK_77", "/a/b.wav", {"common_voice_zh-HK_77"}, set()),
        ("u1", "/a/BAC009S0002W0122.wav", set(), {"BAC009S0002W0122"}),
        ("cv_eng_000026", "/a/0001.wav", set(), {"cv_eng_000026"}),
        ("u1", "/a/A11_0.wav", set(), set()),
    ],
)
def test_names_that_identify_a_clip_are_told_from_running_numbers(
    utt_id, path, sure, likely
):
    assert clip_ids(utt_id, path) == ({path} | sure, likely)


def test_common_voice_clips_are_found_by_number_whatever_their_length():
    clips = [
        Clip("en-a", "/cv/clips/common_voice_en_12345.mp3", "eng", 4.0),
        Clip("en-b", "/cv/clips/common_voice_en_1234.mp3", "eng", 4.0),
    ]
    cut = Clip("t", "/superb/common_voice_en_12345.wav", "eng", 2.5, sets=("test_eng",))
    assert _found(clips, [cut]) == [("en-a", "t", "id")]


@pytest.mark.parametrize(
    "seconds, lang, text, found",
    [
        (4.08, "eng", "", True),
        (4.08, "eng", "Same words", True),
        (4.2, "eng", "same words.", False),
        (4.0, "eng", "other words", False),
        (4.0, "deu", "", False),
    ],
)
def test_other_names_count_only_where_language_duration_and_words_agree(
    seconds, lang, text, found
):
    clip = Clip("a", "/x/1234567890.wav", "eng", 4.0, "same words")
    known = Clip("t", "/y/1234567890.wav", lang, seconds, text)
    assert _found([clip], [known]) == ([("a", "t", "id")] if found else [])


def test_the_same_file_is_found_under_any_id():
    clip = Clip("a", "/x/1.wav", "eng", 4.0)
    assert _found([clip], [Clip("t", "/x/y/../1.wav", "eng", 9.0)]) == [
        ("a", "t", "id")
    ]


@pytest.mark.parametrize(
    "lang, text, seconds, found",
    [
        ("eng", "Well  THAT'S it!", 4.05, True),
        ("eng", "well, that's it", 3.95, True),
        ("eng", "well, that's it", 4.06, False),
        ("eng", "well, that is it", 4.0, False),
        ("deu", "Well, that's it.", 4.0, False),
        ("eng", "...", 4.0, False),
    ],
)
def test_transcripts_count_with_language_and_duration(lang, text, seconds, found):
    clip = Clip("a", "/x/1.wav", "eng", 4.0, "Well, that's it.")
    known = Clip("t", "/y/2.wav", lang, seconds, text)
    assert _found([clip], [known]) == ([("a", "t", "text")] if found else [])


def test_punctuation_width_and_case_do_not_matter():
    assert normalised("你好，Ｗorld！ 1") == "你好world1"


def _speechlike(seconds, seed):
    """Noise whose spectrum changes five times a second."""
    generator = np.random.default_rng(seed)
    pieces = []
    for _ in range(round(seconds * 5)):
        spectrum = np.fft.rfft(generator.standard_normal(3200))
        knots = generator.uniform(-3, 1, 20)
        gain = np.exp(
            np.interp(np.linspace(0, 1, len(spectrum)), np.linspace(0, 1, 20), knots)
        )
        pieces.append(np.fft.irfft(spectrum * gain))
    samples = np.concatenate(pieces)
    return (0.5 * samples / np.abs(samples).max()).astype(np.float32)


@pytest.fixture
def two_sets(make_set, tmp_path):
    """Pretraining clips 0-4, and a test set with 5-9 under names that say nothing."""
    sets = {}
    for split, seeds in (("train", range(5)), ("test", range(5, 10))):
        sets[split] = make_set(split, "eng", [3.0] * 5)
        for n, seed in enumerate(seeds):
            path = tmp_path / f"audio/eng_{split}_{n:03d}.flac"
            soundfile.write(path, _speechlike(3.0, seed), 16000)
    return sets, tmp_path


def _match(root, lang="eng"):
    paths = {p.stem: str(p) for p in sorted((root / "audio").glob("*_train_*"))}
    clips = [Clip(utt, p, lang, soundfile.info(p).duration) for utt, p in paths.items()]
    prints = {utt: fingerprint(read_16k(p), QUERY_STEP) for utt, p in paths.items()}
    evaluation = read_evaluation(root / "data", ["eng"])
    return [
        (o.clip.utt_id, o.found.utt_id, o.by)
        for o in match_audio(clips, prints, evaluation)
    ]


def test_disjoint_sets_have_no_overlap(two_sets):
    assert _match(two_sets[1]) == []


@pytest.mark.parametrize("suffix", [".mp3", ".ogg", ".flac", ".opus"])
def test_renamed_and_encoded_copies_are_found_by_their_audio(
    suffix, two_sets, audio_file
):
    sets, root = two_sets
    copy = root / f"audio/1{suffix}"
    options = {"format": "OGG", "subtype": "OPUS"} if suffix == ".opus" else {}
    soundfile.write(copy, _speechlike(3.0, 2) * 10 ** (-1 / 20), 16000, **options)
    wavs = {
        f"eng_test_{n:03d}": str(root / f"audio/eng_test_{n:03d}.flac")
        for n in range(4)
    }
    write_table(sets["test"] / "wav.scp", wavs | {"eng_test_004": str(copy)})
    assert _match(root) == [("eng_train_002", "eng_test_004", "audio")]
    # Another language's clips are not compared.
    assert _match(root, lang="deu") == []


def test_parts_of_a_recording_are_found_and_it_is_decoded_once(two_sets, monkeypatch):
    sets, root = two_sets
    recording = root / "audio/show.mp3"
    # Of eight parts of three seconds, the sixth is a pretraining clip.
    pieces = [_speechlike(3.0, 3 if n == 5 else 20 + n) for n in range(8)]
    soundfile.write(recording, np.concatenate(pieces), 16000)
    write_table(sets["test"] / "wav.scp", {"show": str(recording)})
    lines = [f"part{n} show {3 * n} {3 * n + 3}\n" for n in range(8)]
    (sets["test"] / "segments").write_text("".join(lines))
    write_table(sets["test"] / "utt2lang", {f"part{n}": "eng" for n in range(8)})
    opened = []

    def count(path):
        opened.append(path)
        return open_audio(path)

    monkeypatch.setattr("espnet2_lamer.data.overlap.open_audio", count)
    assert _match(root) == [("eng_train_003", "part5", "audio")]
    assert opened == [str(recording)]


def test_evaluation_sets_are_dev_and_test_of_every_kind_but_no_training_sets(
    make_set, tmp_path
):
    for split in ("train", "dev", "test", "asr_train", "asr_dev", "asr_test"):
        make_set(split, "eng", [2.0])
    make_set("test", "deu", [2.0])
    data = tmp_path / "data"
    for name in (
        "eval/fleurs/test_eng",
        "eval/commonvoice/dev_eng",
        "eval/fleurs/train_eng",
    ):
        shutil.copytree(data / "test_eng", data / name)
    shutil.rmtree(data / "eval/commonvoice/dev_eng")
    shutil.copytree(data / "dev_eng", data / "eval/commonvoice/dev_eng")
    found = {
        folder.relative_to(data).as_posix() for folder in evaluation_dirs(data, ["eng"])
    }
    assert found == {
        *("dev_eng", "test_eng", "asr_dev_eng", "asr_test_eng"),
        *("eval/fleurs/test_eng", "eval/commonvoice/dev_eng"),
    }
    clips = {clip.utt_id: clip for clip in read_evaluation(data, ["eng"])}
    # A file that is in two sets is read once.
    assert len(clips) == 4
    assert clips["eng_dev_000"].sets == ("dev_eng", "eval/commonvoice/dev_eng")
    assert clips["eng_test_000"].lang == "eng" and clips["eng_test_000"].seconds == 2.0


def test_lists_that_are_no_data_directories_count_as_evaluation_sets(
    make_set, audio_file, tmp_path
):
    make_set("test", "eng", [2.0])
    copy = str(audio_file(tmp_path / "mls/wav/cv_eng_000026.wav", 3.0))
    lists = {"mlsuperb/mls/test_eng": [Utterance("u", copy, "eng", text="WELL THEN")]}
    clips = {c.utt_id: c for c in read_evaluation(tmp_path / "data", ["eng"], 1, lists)}
    assert set(clips) == {"eng_test_000", "u"}
    clip = Clip("a", "/cv/common_voice_en_7.mp3", "eng", 3.01, "Well, then.")
    (overlap,) = match_names([clip], list(clips.values()))
    assert (overlap.by, overlap.found.sets) == ("text", ("mlsuperb/mls/test_eng",))


def test_evaluation_files_that_cannot_be_read_are_warned_about(
    make_set, tmp_path, caplog
):
    make_set("test", "eng", [2.0, 2.0])
    (tmp_path / "audio/eng_test_001.flac").write_text("no audio")
    clips = read_evaluation(tmp_path / "data", ["eng"])
    assert [clip.utt_id for clip in clips] == ["eng_test_000"]
    assert "1 evaluation files cannot be read" in caplog.text
    assert "eng_test_001.flac: not readable" in caplog.text


def test_the_list_has_a_line_per_clip_and_set(tmp_path):
    clips = [Clip(utt, "/x", "eng", 3.0) for utt in ("b", "a")]
    known = Clip("t", "/y", "eng", 3.04, sets=("test_eng", "eval/cv/test_eng"))
    overlaps = [
        Overlap(clips[0], known, "audio", 0.0512),
        Overlap(clips[1], known, "id"),
    ]
    write_overlaps(tmp_path / "overlap.tsv", overlaps)
    assert (tmp_path / "overlap.tsv").read_text().splitlines() == [
        "utt_id\tlang\tmatched_by\tevaluation_set\tevaluation_utt_id\tseconds"
        "\tevaluation_seconds\tdistance",
        "a\teng\tid\teval/cv/test_eng\tt\t3.000\t3.040\t",
        "a\teng\tid\ttest_eng\tt\t3.000\t3.040\t",
        "b\teng\taudio\teval/cv/test_eng\tt\t3.000\t3.040\t0.051",
        "b\teng\taudio\ttest_eng\tt\t3.000\t3.040\t0.051",
    ]
    assert overlap_counts(overlaps) == {"eng": {"id": 1, "text": 0, "audio": 1}}
