"""ASR sets per language."""

import json

import pytest

from espnet2_lamer.errors import RecipeError
from espnet2_lamer.evaluation import benchmark_sets
from espnet2_lamer.evaluation.benchmark_sets import prepare_asr_data
from espnet2_lamer.fileio.datadir import read_table, write_table

_UNITS = {"eng": "char", "cmn": "pinyin"}


def _make(make_set, lang, texts, prefix=""):
    for split in ("train", "dev", "test"):
        make_set(f"{prefix}{split}", lang, [3.0] * len(texts), texts)


def _prepare(root, langs=("eng",), **options):
    return prepare_asr_data(root / "data", root / "dump", langs, _UNITS, **options)


def test_text_becomes_units_and_the_transcript_is_kept(make_set, tmp_path):
    _make(make_set, "eng", ["It's fine."])
    _make(make_set, "cmn", ["老师"])
    write_table(tmp_path / "data/test_cmn/romanisation", {"cmn_test_000": "lao3 shi1"})
    report = _prepare(tmp_path, ["eng", "cmn"])
    raw = tmp_path / "dump/raw"
    assert read_table(raw / "asr_eng_test/text") == {"eng_test_000": "ITS FINE"}
    assert read_table(raw / "asr_eng_test/text.raw") == {"eng_test_000": "It's fine."}
    assert read_table(raw / "asr_cmn_test/text") == {"cmn_test_000": "l ao3 sh i1"}
    assert report["languages"]["cmn"]["unit"] == "pinyin"
    assert report == json.loads((raw / "asr.json").read_text())


def test_official_normalisation_keeps_what_is_no_ascii_punctuation(make_set, tmp_path):
    _make(make_set, "eng", ["It’s “fine”, e\u0301."])
    expected = {"unicode": "ITS FINE É", "official": "IT’S “FINE” E\u0301"}
    for norm, text in expected.items():
        _prepare(tmp_path, text_norm=norm)
        directory = tmp_path / "dump/raw/asr_eng_test"
        for name in ("text", "text.char"):
            assert read_table(directory / name) == {"eng_test_000": text}
        record = json.loads((directory / "set.json").read_text())
        assert record["normalisation"] == norm


def test_the_given_romanisation_wins_over_looked_up_readings(make_set, tmp_path):
    _make(make_set, "cmn", ["行"])
    for split in ("train", "dev", "test"):
        write_table(
            tmp_path / f"data/{split}_cmn/romanisation", {f"cmn_{split}_000": "hang2"}
        )
    _prepare(tmp_path, ["cmn"])
    text = read_table(tmp_path / "dump/raw/asr_cmn_train/text")
    assert text == {"cmn_train_000": "h ang2"}


def test_utterances_without_text_are_dropped_and_counted(make_set, tmp_path):
    _make(make_set, "eng", ["one", "", "...", "two"])
    report = _prepare(tmp_path)["languages"]["eng"]
    assert report["train"]["utterances"] == 2
    assert report["train"]["no_text"] == 2
    wavs = read_table(tmp_path / "dump/raw/asr_eng_train/wav.scp")
    assert list(wavs) == ["eng_train_000", "eng_train_003"]


def test_sets_made_for_asr_are_preferred(make_set, tmp_path):
    _make(make_set, "eng", ["plain"])
    _make(make_set, "eng", ["special"], prefix="asr_")
    _prepare(tmp_path)
    text = read_table(tmp_path / "dump/raw/asr_eng_train/text")
    assert text == {"eng_asr_train_000": "SPECIAL"}


def test_phone_units_come_from_the_timed_phones(make_set, tmp_path):
    _make(make_set, "eng", ["hi"])
    for split in ("train", "dev", "test"):
        (tmp_path / f"data/{split}_eng/phones.ctm").write_text(
            f"eng_{split}_000 1 0.1 0.1 h\neng_{split}_000 1 0.2 0.1 aI\n"
        )
    prepare_asr_data(tmp_path / "data", tmp_path / "dump", ["eng"], {"eng": "phone"})
    text = read_table(tmp_path / "dump/raw/asr_eng_test/text")
    assert text == {"eng_test_000": "h aI"}


@pytest.mark.parametrize("texts", [None, ["", ""]])
def test_a_language_without_text_is_named_with_its_file(make_set, tmp_path, texts):
    _make(make_set, "eng", ["one", "two"])
    _make(make_set, "cmn", ["好", "好"])
    make_set("dev", "cmn", [3.0, 3.0], texts)
    if texts is None:
        (tmp_path / "data/dev_cmn/text").unlink()
    with pytest.raises(RecipeError, match=r"dev_cmn/text: none of 2 cmn utterances"):
        _prepare(tmp_path, ["eng", "cmn"])
    assert not list((tmp_path / "dump").rglob("text"))


def test_a_missing_set_is_named(make_set, tmp_path):
    _make(make_set, "eng", ["one"])
    (tmp_path / "data/test_eng/wav.scp").unlink()
    with pytest.raises(RecipeError, match=r"test_eng/wav\.scp: file not found"):
        _prepare(tmp_path)


def test_transcripts_without_units_are_dropped_and_counted(make_set, tmp_path):
    _make(make_set, "cmn", ["42", "四十二", "42"])
    write_table(tmp_path / "data/dev_cmn/romanisation", {"cmn_dev_002": "si4"})
    report = _prepare(tmp_path, ["cmn"])["languages"]["cmn"]
    assert [report[split]["no_text"] for split in ("train", "dev")] == [2, 1]
    _make(make_set, "cmn", ["42"])
    with pytest.raises(RecipeError, match="train_cmn/text: none of 1 cmn utterances"):
        _prepare(tmp_path, ["cmn"])


def test_tokens_without_a_reading_are_warned_about_by_set(make_set, tmp_path, caplog):
    _make(make_set, "cmn", ["老师" * 10, "老师" * 10 + "KTV"])
    make_set("test", "cmn", [3.0], ["老师"])
    _prepare(tmp_path, ["cmn"])
    text = "asr_cmn_train: 1 of 81 tokens (1.2 %) have no reading in pinyin"
    assert text in caplog.text and "KTV" in caplog.text
    assert "asr_cmn_test" not in caplog.text


def test_speech_without_text_makes_sets_of_limited_length(
    make_set, tmp_path, monkeypatch
):
    monkeypatch.setitem(benchmark_sets.SPEECH_MINUTES, "train", 0.1)
    _make(make_set, "eng", ["one"] * 5)
    _make(make_set, "cmn", [""] * 5)
    (tmp_path / "audio/cmn_train_000.flac").write_bytes(b"")
    report = _prepare(tmp_path, ["eng", "cmn"], speech_only=["cmn"])["languages"]
    assert report["cmn"]["unit"] == "lang"
    assert [report["cmn"][s]["utterances"] for s in ("train", "dev")] == [2, 5]
    train = tmp_path / "dump/raw/asr_cmn_train"
    assert json.loads((train / "set.json").read_text())["unit"] == "lang"
    assert not (train / "text").exists() and not (train / "text.char").exists()
    assert set(read_table(train / "utt2lang").values()) == {"cmn"}
    # A budget of it is one, too.
    benchmark_sets.write_budget(train, "10min", 0)
    assert read_table(f"{train}_10min/wav.scp") == read_table(train / "wav.scp")


def test_bad_audio_is_left_out_counted_and_listed_until_it_is_too_much(
    make_set, tmp_path, caplog
):
    _make(make_set, "eng", ["one"] * 10)
    (tmp_path / "audio/eng_train_003.flac").write_bytes(b"")
    clip = tmp_path / "audio/eng_test_004.flac"
    clip.write_bytes(clip.read_bytes()[:-2000])
    report = _prepare(tmp_path)["languages"]["eng"]
    counts = {split: report[split]["bad_audio"] for split in ("train", "dev", "test")}
    assert counts == {"train": 1, "dev": 0, "test": 1}
    assert report["test"]["utterances"] == 9
    lines = (tmp_path / "dump/raw/skipped_audio_asr.tsv").read_text().splitlines()
    assert [line.split("\t")[:2] for line in lines[1:]] == [
        ["test_eng", "eng_test_004"],
        ["train_eng", "eng_train_003"],
    ]
    assert "test_eng: 1 of 10 utterances skipped" in caplog.text
    (tmp_path / "audio/eng_test_005.flac").unlink()
    with pytest.raises(RecipeError, match="test_eng/wav.scp: 2 of 10 audio files"):
        _prepare(tmp_path)
