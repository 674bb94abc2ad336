"""Replay sampling and the data of continual pretraining."""

import json
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import soundfile

from espnet2_lamer.data.hours import PAPER_HOURS
from espnet2_lamer.data.selection import Selection, prepare_ssl_data
from espnet2_lamer.errors import RecipeError
from espnet2_lamer.fileio.datadir import read_table, write_table


@pytest.fixture
def three(make_set, tmp_path):
    for lang, count in (("eng", 20), ("cmn", 3), ("yue", 2)):
        make_set("train", lang, [3.0] * count)
        make_set("dev", lang, [3.0])
    return tmp_path


def _prepare(
    root, hours=30 / 3600, new=("cmn", "yue"), replay=("eng",), compare=False, **options
):
    selection = Selection(list(new), list(replay), hours, **options)
    return prepare_ssl_data(
        root / "data", root / "dump", selection, compare_hours=compare
    )


def test_new_languages_are_whole_and_the_old_one_is_sampled(three):
    hours = _prepare(three)
    langs = list(read_table(three / "dump/raw/ssl_train/utt2lang").values())
    assert [langs.count(lang) for lang in ("cmn", "eng", "yue")] == [3, 10, 2]
    dev = list(read_table(three / "dump/raw/ssl_dev/utt2lang").values())
    assert sorted(dev) == ["cmn", "eng", "yue"]
    assert hours == json.loads((three / "dump/raw/hours.json").read_text())
    english = hours["languages"]["eng"]
    assert english["role"] == "replay" and not english["whole_language"]
    assert english["hours"] == pytest.approx(30 / 3600, abs=1e-4)
    assert english["available_hours"] == pytest.approx(60 / 3600, abs=1e-4)
    assert hours["languages"]["yue"]["role"] == "new"


def test_the_paper_s_hours_stand_beside_ours(three):
    languages = _prepare(three)["languages"]
    assert {k: v["paper_hours"] for k, v in languages.items()} == PAPER_HOURS


def test_the_same_seed_writes_the_same_files(three):
    contents = []
    for seed in (0, 0, 1):
        _prepare(three, seed=seed)
        files = sorted((three / "dump/raw/ssl_train").iterdir())
        contents.append([(path.name, path.read_bytes()) for path in files])
    assert contents[0] == contents[1] != contents[2]


def test_too_little_replay_is_used_whole_and_reported(three, caplog):
    with caplog.at_level("INFO"):
        english = _prepare(three, hours=100.0)["languages"]["eng"]
    assert english["whole_language"] and english["utterances"] == 20
    assert "the whole language is used, nothing is repeated" in caplog.text


def test_replay_is_drawn_from_utterances_of_usable_length(make_set, tmp_path):
    make_set("train", "eng", [1.0] * 5 + [3.0] * 5)
    make_set("train", "cmn", [3.0])
    for lang in ("eng", "cmn"):
        make_set("dev", lang, [3.0])
    english = _prepare(tmp_path, hours=15 / 3600, new=["cmn"])["languages"]["eng"]
    assert english["utterances"] == 5
    assert english["dropped_short"] == 5


def test_a_missing_language_is_named_with_file_and_option(three):
    with pytest.raises(RecipeError, match=r"train_deu.wav\.scp: file not found.*deu"):
        _prepare(three, new=["cmn", "deu"])
    assert not (three / "dump").exists()


def test_language_without_utterances_is_named(three):
    (three / "data/train_yue/wav.scp").write_text("")
    with pytest.raises(RecipeError, match="train_yue.*language yue has no train"):
        _prepare(three)


@pytest.mark.parametrize("split", ["train", "dev"])
@pytest.mark.parametrize("lang", ["yue", "eng"])
def test_language_with_nothing_between_2_and_30_s_is_named(
    three, make_set, split, lang
):
    make_set(split, lang, [1.0, 1.5])
    with pytest.raises(RecipeError, match=rf"{split}_{lang}.* {lang} .*2 and 30 s"):
        _prepare(three)
    assert not (three / "dump/raw/ssl_train").exists()


def test_an_id_in_two_languages_is_refused(three):
    utts = read_table(three / "data/train_cmn/wav.scp")
    write_table(three / "data/dev_yue/wav.scp", utts)
    with pytest.raises(RecipeError, match="dev_yue.*'cmn_train_000' is also in"):
        _prepare(three)


@pytest.mark.parametrize(
    "options, message",
    [
        ({"new": ["cmn", "eng"]}, "eng named twice"),
        ({"new": []}, "--new_langs: empty"),
        ({"hours": 0.0}, "--replay_hours: found 0"),
        (
            {"replay_sampling": "x"},
            "--replay_sampling: found 'x', expected one of unif",
        ),
        ({"replay_alpha": 1.5}, "--replay_alpha: found 1.5, expected 0 to 1"),
        ({"max_bad_audio": -1.0}, "--max_bad_audio: found -1, expected 0 to 100"),
        ({"dev_hours": -1.0}, "--dev_hours: found -1, expected 0"),
    ],
)
def test_contradicting_options_are_refused(three, options, message):
    with pytest.raises(RecipeError, match=message):
        _prepare(three, **options)


def test_training_without_replay_needs_no_hours(three):
    languages = _prepare(three, hours=0.0, replay=[])["languages"]
    assert set(languages) == {"cmn", "yue"}


def test_both_limits_are_kept_and_refer_to_the_original(make_set, tmp_path):
    # 44.1 kHz: one sample less than 2 s still rounds to 32000 samples at 16 kHz.
    seconds = [88199 / 44100, 2.0, 30.0, 30.0 + 1 / 44100]
    make_set("train", "cmn", seconds, rate=44100)
    make_set("dev", "cmn", [3.0])
    counts = _prepare(tmp_path, new=["cmn"], replay=[], hours=0)["languages"]["cmn"]
    assert (counts["dropped_short"], counts["dropped_long"]) == (1, 1)
    samples = read_table(tmp_path / "dump/raw/ssl_train/utt2num_samples")
    assert samples == {"cmn_train_001": "32000", "cmn_train_002": "480000"}


def _damage(root, *utts):
    for utt in utts:
        path = root / f"audio/{utt}.flac"
        path.write_bytes(path.read_bytes()[:-2000])


def test_bad_audio_is_skipped_counted_and_listed(make_set, tmp_path, caplog):
    make_set("train", "cmn", [3.0] * 30)
    make_set("train", "eng", [3.0] * 10)
    for lang in ("cmn", "eng"):
        make_set("dev", lang, [3.0] * 10)
    _damage(tmp_path, "cmn_train_004", "cmn_dev_002")
    (tmp_path / "audio/eng_train_007.flac").unlink()
    hours = _prepare(tmp_path, hours=1.0, new=["cmn"])["languages"]
    lines = (tmp_path / "dump/raw/skipped_audio.tsv").read_text().splitlines()
    assert [line.split("\t")[:2] for line in lines[1:]] == [
        ["dev_cmn", "cmn_dev_002"],
        ["train_cmn", "cmn_train_004"],
        ["train_eng", "eng_train_007"],
    ]
    assert lines[3].endswith("file not found")
    assert "train_cmn: 1 of 30 utterances skipped" in caplog.text
    assert hours["cmn"]["skipped_audio"] == hours["eng"]["skipped_audio"] == 1
    assert (hours["cmn"]["utterances"], hours["eng"]["utterances"]) == (29, 9)
    wavs = read_table(tmp_path / "dump/raw/ssl_train/wav.scp")
    assert len(wavs) == 38 and "cmn_train_004" not in wavs


def test_every_kind_of_corrupt_file_is_listed_with_its_reason(make_set, tmp_path):
    make_set("dev", "cmn", [3.0])
    make_set("train", "cmn", [3.0] * 12)
    wavs = read_table(tmp_path / "data/train_cmn/wav.scp")
    generator = np.random.default_rng(0)
    noise = generator.uniform(-0.1, 0.1, 48000).astype(np.float32)
    cut, long_, nan, silent = (tmp_path / name for name in "abcd")
    soundfile.write(cut, noise, 16000, format="MP3")
    cut.write_bytes(cut.read_bytes()[:5000])
    soundfile.write(long_, noise, 16000, format="WAV")
    data = bytearray(long_.read_bytes())
    size = data.index(b"data") + 4
    # The header now promises two seconds more than there are.
    data[size : size + 4] = (2 * (48000 + 32000)).to_bytes(4, "little")
    long_.write_bytes(data)
    noise[7] = np.nan
    soundfile.write(nan, noise, 16000, format="WAV", subtype="FLOAT")
    soundfile.write(silent, np.zeros(48000), 16000, format="FLAC")
    for n, path in enumerate((cut, long_, nan, silent)):
        wavs[f"cmn_train_{n:03d}"] = str(path)
    write_table(tmp_path / "data/train_cmn/wav.scp", wavs)
    report = _prepare(tmp_path, new=["cmn"], replay=[], max_bad_audio=34.0)
    assert report["languages"]["cmn"]["utterances"] == 8
    lines = (tmp_path / "dump/raw/skipped_audio.tsv").read_text().splitlines()[1:]
    reasons = ("truncated", "truncated", "holds NaN", "silent")
    for line, reason in zip(lines, reasons, strict=True):
        assert line.split("\t")[3].startswith(reason), line
    assert [line.split("\t")[1] for line in lines] == [
        f"cmn_train_{n:03d}" for n in range(4)
    ]


def test_too_much_bad_audio_stops_the_run_with_the_list(make_set, tmp_path):
    make_set("train", "cmn", [3.0] * 30)
    make_set("dev", "cmn", [3.0] * 3)
    _damage(tmp_path, "cmn_train_004", "cmn_train_005")
    with pytest.raises(RecipeError, match=r"2 of 30 audio files.*skipped_audio\.tsv"):
        _prepare(tmp_path, new=["cmn"], replay=[])
    report = (tmp_path / "dump/raw/skipped_audio.tsv").read_text()
    assert report.count("truncated or damaged") == 2
    assert not (tmp_path / "dump/raw/ssl_train").exists()
    _prepare(tmp_path, new=["cmn"], replay=[], max_bad_audio=7.0)
    # One of three is too much for any small share.
    _damage(tmp_path, "cmn_dev_001")
    with pytest.raises(RecipeError, match="1 of 3 audio files"):
        _prepare(tmp_path, new=["cmn"], replay=[], max_bad_audio=7.0)


def test_hours_are_reported_per_corpus_and_compared_on_request(three, caplog):
    write_table(
        three / "data/train_cmn/utt2source",
        {f"cmn_train_{n:03d}": "thchs30" if n else "aishell1" for n in range(3)},
    )
    cmn = _prepare(three)["languages"]["cmn"]
    assert {k: v["utterances"] for k, v in cmn["sources"].items()} == {
        "aishell1": 1,
        "thchs30": 2,
    }
    assert "less than the paper's" not in caplog.text
    _prepare(three, compare=True)
    assert caplog.text.count("less than the paper's") == 3


@pytest.fixture
def leaking(make_set, tmp_path):
    """30 training clips; 000 is a test clip by name, 001 by text, 002 by audio."""
    texts = [f"sentence {n}" for n in range(30)]
    make_set("train", "cmn", [3.0 + n / 10 for n in range(30)], texts)
    make_set("dev", "cmn", [3.0])
    test = make_set("asr_test", "cmn", [3.0, 3.1, 9.0], ["a", "Sentence 1.", "c"])
    folder = tmp_path / "audio"
    (folder / "cmn_train_000.flac").rename(folder / "common_voice_zh-CN_123.flac")
    wavs = read_table(tmp_path / "data/train_cmn/wav.scp")
    wavs["cmn_train_000"] = str(folder / "common_voice_zh-CN_123.flac")
    write_table(tmp_path / "data/train_cmn/wav.scp", wavs)
    copy, rate = soundfile.read(wavs["cmn_train_002"])
    soundfile.write(folder / "copy.ogg", copy, rate)
    (folder / "cmn_asr_test_000.flac").rename(folder / "common_voice_zh-CN_123_x.flac")
    write_table(
        test / "wav.scp",
        {
            "cmn_asr_test_000": str(folder / "common_voice_zh-CN_123_x.flac"),
            "cmn_asr_test_001": str(folder / "cmn_asr_test_001.flac"),
            "cmn_asr_test_002": str(folder / "copy.ogg"),
        },
    )
    return tmp_path


@pytest.mark.parametrize("role", ["new", "replay"])
def test_clips_of_evaluation_sets_are_listed_and_left_out(
    leaking, role, make_set, caplog
):
    make_set("train", "eng", [3.0])
    make_set("dev", "eng", [3.0])
    langs = (["cmn"], ["eng"]) if role == "new" else (["eng"], ["cmn"])
    cmn = _prepare(leaking, hours=9.0, new=langs[0], replay=langs[1])["languages"][
        "cmn"
    ]
    lines = (leaking / "dump/raw/overlap.tsv").read_text().splitlines()[1:]
    assert [line.split("\t")[:5] for line in lines] == [
        [f"cmn_train_{n:03d}", "cmn", by, "asr_test_cmn", f"cmn_asr_test_{n:03d}"]
        for n, by in enumerate(("id", "text", "audio"))
    ]
    wavs = read_table(leaking / "dump/raw/ssl_train/wav.scp")
    assert sorted(utt for utt in wavs if utt.startswith("cmn")) == [
        f"cmn_train_{n:03d}" for n in range(3, 30)
    ]
    assert cmn["overlap"] == {"id": 1, "text": 1, "audio": 1}
    assert cmn["utterances"] == 27
    seconds = sum(3.0 + n / 10 for n in range(3, 30))
    assert cmn["hours"] == pytest.approx(seconds / 3600, abs=2e-4)
    assert "cmn: 3 pretraining clips are in an evaluation set" in caplog.text


def test_overlap_can_be_kept_and_is_listed_all_the_same(leaking):
    cmn = _prepare(leaking, new=["cmn"], replay=[], drop_overlap=False)
    assert cmn["languages"]["cmn"]["utterances"] == 30
    assert len((leaking / "dump/raw/overlap.tsv").read_text().splitlines()) == 4


def test_a_language_that_is_all_evaluation_is_named(make_set, tmp_path):
    train = make_set("train", "cmn", [3.0, 4.0])
    make_set("dev", "cmn", [3.0])
    test = make_set("test", "cmn", [3.0, 4.0])
    paths = read_table(train / "wav.scp").values()
    wavs = dict(zip(read_table(test / "wav.scp"), paths, strict=True))
    write_table(test / "wav.scp", wavs)
    with pytest.raises(RecipeError, match=r"overlap\.tsv: every usable .* cmn"):
        _prepare(tmp_path, new=["cmn"], replay=[])


def test_replay_is_drawn_as_asked(make_set, tmp_path):
    for lang, count in (("eng", 40), ("deu", 10), ("cmn", 1)):
        make_set("train", lang, [3.0] * count)
        make_set("dev", lang, [3.0])
    speakers = {f"eng_train_{n:03d}": "a" if n < 30 else "b" for n in range(40)}
    write_table(tmp_path / "data/train_eng/utt2spk", speakers)
    units = tmp_path / "text.km"
    units.write_text("".join(f"{u} {s} {s} 0\n" for u, s in speakers.items()))

    def drawn(replay, **options):
        _prepare(tmp_path, hours=10 * 3 / 3600, new=["cmn"], replay=replay, **options)
        return read_table(tmp_path / "dump/raw/ssl_train/utt2lang")

    for method in ("speaker", "cluster"):
        table = drawn(["eng"], replay_sampling=method, replay_clusters=units)
        counts = Counter(speakers[utt] for utt in table if utt in speakers)
        assert counts == {"a": 5, "b": 5}
    table = drawn(["eng", "deu"], replay_sampling="temperature", replay_alpha=1.0)
    # 20 utterances in the proportion of 40 to 10.
    assert Counter(table.values()) == {"eng": 16, "deu": 4, "cmn": 1}
    table = drawn(["eng", "deu"])
    assert Counter(table.values()) == {"eng": 10, "deu": 10, "cmn": 1}


def test_a_large_dev_set_is_sampled_and_a_small_one_is_whole(make_set, tmp_path):
    for lang, seconds in (("cmn", [3.0] * 30), ("yue", [3.0] * 4 + [1.0])):
        make_set("train", lang, [3.0])
        make_set("dev", lang, seconds)

    def dev(**options):
        report = _prepare(tmp_path, new=["cmn", "yue"], replay=[], **options)
        table = read_table(tmp_path / "dump/raw/ssl_dev/utt2lang")
        return table, report["languages"]

    table, _ = dev()
    assert Counter(table.values()) == {"cmn": 30, "yue": 4}
    table, languages = dev(dev_hours=30 / 3600)
    assert Counter(table.values()) == {"cmn": 10, "yue": 4}
    assert languages["cmn"]["dev"]["utterances"] == 10
    assert languages["yue"]["dev"]["dropped_short"] == 1
    assert dev(dev_hours=30 / 3600)[0] == table
    assert dev(dev_hours=30 / 3600, seed=1)[0] != table


def test_processes_do_not_change_what_is_written(three, monkeypatch):
    monkeypatch.setattr("espnet2_lamer.data.audio._FILES_PER_PROCESS", 1)
    raw = three / "dump/raw"
    contents = []
    for nj in (1, 2):
        selection = Selection(["cmn", "yue"], ["eng"], 30 / 3600)
        prepare_ssl_data(three / "data", three / "dump", selection, nj)
        files = sorted(p for p in raw.rglob("*") if p.is_file())
        contents.append([(p.name, p.read_bytes()) for p in files])
    assert contents[0] == contents[1]


def test_lost_hours_are_said_per_language_and_reason(make_set, tmp_path, caplog):
    folder = make_set("train", "cmn", [3.0] * 9 + [1.0, 40.0, 3.0])
    make_set("dev", "cmn", [3.0])
    cut = Path(read_table(folder / "wav.scp")["cmn_train_011"])
    cut.write_bytes(cut.read_bytes()[:30000])
    both = soundfile.read(tmp_path / "audio/cmn_train_000.flac")[0]
    opposite = np.stack([both, -both], axis=1)
    soundfile.write(tmp_path / "audio/cmn_train_000.flac", opposite, 16000)
    selection = Selection(["cmn"], [], 1.0, max_bad_audio=20.0)
    hours = prepare_ssl_data(tmp_path / "data", tmp_path / "dump", selection)
    entry = hours["languages"]["cmn"]
    assert entry["one_channel"] == 1
    assert {why: row["utterances"] for why, row in entry["lost"].items()} == {
        **{"longer than 30 s": 1, "truncated or damaged": 1, "shorter than 2 s": 1}
    }
    assert entry["lost_percent"] == pytest.approx(100 * 44 / 71, abs=0.01)
    assert "cmn: 62.0 % of its hours are lost: 0.011 h longer than 30 s" in caplog.text
