"""CommonVoice: its lists, its odd rows, its locales."""

import json
import shutil
from functools import partial

import pytest

from espnet2_lamer.data.corpora import prepare as preparation
from espnet2_lamer.errors import RecipeError
from espnet2_lamer.fileio.datadir import read_table
from tests.corpus_trees import (
    CV_HEADER,
    client,
    cv_row,
    write_commonvoice,
    write_lines,
    write_noise,
)

prepare = partial(preparation.prepare, "commonvoice")

ENGLISH = [cv_row("en", n, f"Sentence {n}.") for n in range(8)]


def _ids(path):
    return list(read_table(path / "wav.scp"))


def _clips(locale, *numbers):
    return [f"commonvoice_common_voice_{locale}_{n}" for n in numbers]


@pytest.fixture
def english(tmp_path):
    return write_commonvoice(
        tmp_path, "en", ENGLISH, dev=ENGLISH[:1], test=ENGLISH[1:3], train=ENGLISH[3:5]
    )


def _source(report, name, source):
    return report["sets"][name]["sources"][source]


def test_pretraining_is_validated_without_dev_and_test(english, tmp_path):
    out = tmp_path / "data"
    report = prepare(english.parent, out, ["eng"])
    assert _ids(out / "pretrain/commonvoice/train_eng") == _clips("en", *range(3, 8))
    counts = _source(report, "pretrain/train_eng", "commonvoice-en")
    assert counts["rows"] == 8 and counts["utterances"] == 5
    assert counts["left_out"] == {"in_dev_or_test": 3}
    assert json.loads((out / "commonvoice.json").read_text()) == report
    assert report["release"] == "11.0"


def test_evaluation_sets_are_the_corpus_own(english, tmp_path):
    prepare(english.parent, tmp_path / "data", ["eng"])
    folder = tmp_path / "data/eval/commonvoice"
    assert _ids(folder / "train_eng") == _clips("en", 3, 4)
    assert _ids(folder / "dev_eng") == _clips("en", 0)
    assert _ids(folder / "test_eng") == _clips("en", 1, 2)
    (utt,) = _clips("en", 0)
    assert read_table(folder / "dev_eng/text") == {utt: "Sentence 0."}
    assert read_table(folder / "dev_eng/utt2lang") == {utt: "eng"}
    assert read_table(folder / "dev_eng/utt2source") == {utt: "commonvoice-en"}
    clip = english / "clips/common_voice_en_0.mp3"
    assert read_table(folder / "dev_eng/wav.scp") == {utt: str(clip)}


def test_both_locales_of_cantonese_join_and_stay_apart_as_sources(tmp_path):
    for locale in ("zh-HK", "yue", "zh-TW"):
        rows = [cv_row(locale, n, "你好") for n in range(3)]
        write_commonvoice(tmp_path, locale, rows, dev=rows[:1], test=rows[1:2])
    out = tmp_path / "data"
    report = prepare(tmp_path, out, ["yue"])
    sources = read_table(out / "pretrain/commonvoice/train_yue/utt2source")
    assert sources == {
        _clips("zh-HK", 2)[0]: "commonvoice-zh-HK",
        _clips("yue", 2)[0]: "commonvoice-yue",
    }
    assert set(read_table(out / "eval/commonvoice/dev_yue/utt2lang").values()) == {
        "yue"
    }
    assert not any("cmn" in name for name in report["sets"])


def test_a_missing_and_an_empty_clip_are_counted_and_listed(english, tmp_path, caplog):
    missing = english / "clips/common_voice_en_5.mp3"
    missing.unlink()
    empty = english / "clips/common_voice_en_6.mp3"
    empty.write_bytes(b"")
    out = tmp_path / "data"
    report = prepare(english.parent, out, ["eng"], max_missing=40)
    counts = _source(report, "pretrain/train_eng", "commonvoice-en")
    assert counts["left_out"] == {"empty_file": 1, "in_dev_or_test": 3, "missing": 1}
    assert _ids(out / "pretrain/commonvoice/train_eng") == _clips("en", 3, 4, 7)
    listing = (out / report["listing"]).read_text().splitlines()
    assert listing[0] == "set\tsource\treason\twhat"
    assert sorted(listing[1:]) == [
        f"pretrain/train_eng\tcommonvoice-en\tempty_file\t{empty}",
        f"pretrain/train_eng\tcommonvoice-en\tmissing\t{missing}",
    ]


def test_more_than_the_share_stops_with_the_list_and_earlier_sets_stay(
    english, tmp_path
):
    out = tmp_path / "data"
    prepare(english.parent, out, ["eng"])
    (english / "clips/common_voice_en_5.mp3").unlink()
    message = r"train_eng, commonvoice-en: 1 of 5 rows cannot be used \(20.00 %\)"
    with pytest.raises(RecipeError, match=message) as caught:
        prepare(english.parent, out, ["eng"], max_missing=19)
    assert "missing: " in str(caught.value) and "_en_5.mp3" in str(caught.value)
    assert "_en_5.mp3" in (out / "commonvoice.left_out.tsv").read_text()
    assert len(_ids(out / "pretrain/commonvoice/train_eng")) == 5
    assert not [p for p in (out / "pretrain").iterdir() if p.name.startswith(".")]
    prepare(english.parent, out, ["eng"], max_missing=20)


def test_a_small_locale_is_not_hidden_by_a_large_one(tmp_path):
    for locale, count in (("zh-HK", 50), ("yue", 2)):
        rows = [cv_row(locale, n) for n in range(count)]
        folder = write_commonvoice(tmp_path, locale, rows[1:], dev=rows[:1])
    for clip in (folder / "clips").iterdir():
        clip.unlink()
    (folder / "dev.tsv").write_text(CV_HEADER + "\n")
    with pytest.raises(RecipeError, match="commonvoice-yue: 1 of 1 rows"):
        prepare(tmp_path, tmp_path / "data", ["yue"], max_missing=50)


def test_a_clip_that_is_gone_from_every_file_is_simply_not_there(english, tmp_path):
    # A clip withdrawn before the archive was packed: neither row nor file.
    rows = [row for row in ENGLISH if "_en_7" not in row]
    write_lines(english / "validated.tsv", CV_HEADER, *rows)
    report = prepare(english.parent, tmp_path / "data", ["eng"])
    counts = _source(report, "pretrain/train_eng", "commonvoice-en")
    assert counts["left_out"] == {"in_dev_or_test": 3}
    # One listed in dev but withdrawn from disk still stays out of pretraining.
    (english / "clips/common_voice_en_0.mp3").unlink()
    report = prepare(english.parent, tmp_path / "data", ["eng"], max_missing=100)
    counts = _source(report, "pretrain/train_eng", "commonvoice-en")
    assert counts["left_out"] == {"in_dev_or_test": 3}


def test_quotes_are_text_and_never_join_rows(tmp_path):
    rows = [
        cv_row("en", 0, '"Open at the start'),
        cv_row("en", 1, '""Doubled"" "and single"'),
        cv_row("en", 2, 'closed at the end"'),
    ]
    write_commonvoice(tmp_path, "en", rows)
    prepare(tmp_path, tmp_path / "data", ["eng"])
    text = read_table(tmp_path / "data/pretrain/commonvoice/train_eng/text")
    assert list(text.values()) == [
        '"Open at the start',
        '""Doubled"" "and single"',
        'closed at the end"',
    ]


def test_empty_and_odd_text_stays_in_pretraining(tmp_path):
    rows = [
        cv_row("en", 0, ""),
        cv_row("en", 1, "with\ta tab"),
        cv_row("en", 2, "zero\u200bwidth\u2028line"),
        cv_row("en", 3, "plain"),
    ]
    write_commonvoice(tmp_path, "en", rows)
    out = tmp_path / "data"
    report = prepare(tmp_path, out, ["eng"])
    folder = out / "pretrain/commonvoice/train_eng"
    assert len(_ids(folder)) == 4
    assert list(read_table(folder / "text").items()) == [
        (_clips("en", 1)[0], "with a tab"),
        (_clips("en", 2)[0], "zero width line"),
        (_clips("en", 3)[0], "plain"),
    ]
    counts = _source(report, "pretrain/train_eng", "commonvoice-en")
    assert counts["remarks"] == {"control_characters_in_text": 2, "no_text": 1}
    # The columns after the sentence were not shifted by its tab.
    assert counts["left_out"] == {}


def test_damaged_rows_cost_only_themselves(tmp_path):
    rows = [cv_row("en", n) for n in range(3)]
    folder = write_commonvoice(tmp_path, "en", rows)
    outside = cv_row("en", 9).replace("common_voice_en_9", "../../en/clips/x")
    odd = ["short\trow", outside, "", rows[1].replace("One", "Other")]
    data = "\n".join([CV_HEADER, *rows, *odd]).encode() + b"\nx\t\xff\t\n"
    (folder / "validated.tsv").write_bytes(data)
    out = tmp_path / "data"
    report = prepare(tmp_path, out, ["eng"], max_missing=50)
    counts = _source(report, "pretrain/train_eng", "commonvoice-en")
    assert counts["left_out"] == {"broken_row": 3, "duplicate": 1}
    text = read_table(out / "pretrain/commonvoice/train_eng/text")
    assert list(text) == _clips("en", 0, 1, 2)
    # The first of two rows of a clip counts.
    assert text[_clips("en", 1)[0]] == "One two."
    listing = (out / "commonvoice.left_out.tsv").read_text()
    assert f"{folder / 'validated.tsv'}:5" in listing


def test_windows_line_ends_and_a_byte_order_mark_are_read(english, tmp_path):
    path = english / "validated.tsv"
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes().replace(b"\n", b"\r\n"))
    prepare(english.parent, tmp_path / "data", ["eng"])
    assert len(_ids(tmp_path / "data/pretrain/commonvoice/train_eng")) == 5


def test_speakers_are_client_ids_shortened_and_the_same_in_every_set(tmp_path):
    rows = [
        cv_row("en", 0, speaker="anna"),
        cv_row("en", 1, speaker="anna"),
        cv_row("en", 2, speaker="bert"),
        cv_row("en", 3).replace(client("anna"), ""),
        cv_row("en", 4).replace(client("anna"), "anna lee"),
    ]
    write_commonvoice(tmp_path, "en", rows, dev=rows[:1])
    prepare(tmp_path, tmp_path / "data", ["eng"])
    folder = tmp_path / "data/pretrain/commonvoice/train_eng"
    speakers = list(read_table(folder / "utt2spk").values())
    anna, bert, nobody, odd = speakers
    dev = read_table(tmp_path / "data/eval/commonvoice/dev_eng/utt2spk")
    assert list(dev.values()) == [anna]
    assert anna == f"commonvoice_{client('anna')[:16]}"
    assert nobody == _clips("en", 3)[0]
    assert len({anna, bert, nobody, odd}) == 4 and " " not in odd
    assert list(read_table(folder / "spk2utt")) == sorted(speakers)


def test_rows_without_the_suffix_of_the_clip_are_read(tmp_path):
    rows = [cv_row("en", 0)]
    folder = write_commonvoice(tmp_path, "en", rows)
    write_lines(folder / "validated.tsv", CV_HEADER, cv_row("en", 0, suffix=""))
    prepare(tmp_path, tmp_path / "data", ["eng"])
    assert _ids(tmp_path / "data/pretrain/commonvoice/train_eng") == _clips("en", 0)


def test_hours_come_from_the_list_of_durations_or_stay_unknown(english, tmp_path):
    report = prepare(english.parent, tmp_path / "data", ["eng"])
    assert report["pretraining_hours"] == {"eng": None}
    lines = [f"common_voice_en_{n}.mp3\t{36000 * n}" for n in range(8)]
    write_lines(english / "clip_durations.tsv", "clip\tduration[ms]", *lines)
    report = prepare(english.parent, tmp_path / "data", ["eng"])
    assert report["pretraining_hours"] == {
        "eng": pytest.approx(0.01 * (3 + 4 + 5 + 6 + 7))
    }


def test_other_releases_are_warned_about(english, tmp_path, caplog):
    english.parent.rename(tmp_path / "cv-corpus-17.0-2024-03-15")
    report = prepare(tmp_path, tmp_path / "data", ["eng"])
    assert report["release"] == "17.0"
    assert "release 17.0; mHuBERT-147 and the paper used 11.0" in caplog.text


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (
            lambda en: en.joinpath("dev.tsv").unlink(),
            r"en/dev\.tsv: file not found; it belongs to the archive",
        ),
        (
            lambda en: write_lines(en / "validated.tsv", "path,sentence"),
            r"validated\.tsv:1: no column client_id, path, sentence; found path,",
        ),
        (
            lambda en: write_lines(en / "test.tsv", CV_HEADER, cv_row("de", 1)),
            r"test\.tsv:2: locale 'de', expected 'en' as the folder says",
        ),
        (
            lambda en: en.rename(en.with_name("english")),
            r"found cv-corpus-11\.0-2022-09-21.*, expected en/validated\.tsv or ",
        ),
    ],
)
def test_another_archive_is_refused_with_what_was_found(
    english, tmp_path, damage, message
):
    damage(english)
    with pytest.raises(RecipeError, match=message):
        prepare(tmp_path, tmp_path / "data", ["eng"])
    assert not (tmp_path / "data/pretrain").exists() or not list(
        (tmp_path / "data/pretrain").iterdir()
    )


def test_a_language_needs_all_of_its_locales(tmp_path):
    rows = [cv_row("yue", 0)]
    write_commonvoice(tmp_path, "yue", rows)
    with pytest.raises(RecipeError, match="zh-HK: folder not found; language yue is"):
        prepare(tmp_path, tmp_path / "data", ["yue"])


def test_threads_do_not_change_the_result(english, tmp_path):
    write_noise(english / "clips/unlisted.mp3", 0.1, 32000)
    first = prepare(english.parent, tmp_path / "one", ["eng"], nj=1)
    second = prepare(english.parent, tmp_path / "two", ["eng"], nj=2)
    assert first == second


def test_several_releases_side_by_side_are_refused_by_name(tmp_path):
    folder = write_commonvoice(tmp_path, "en", [cv_row("en", 0), cv_row("en", 1)])
    other = tmp_path / "cv-corpus-17.0-2024-03-15"
    shutil.copytree(folder.parent, other)
    message = "found cv-corpus-11.0-2022-09-21, cv-corpus-17.0-2024-03-15, expected one"
    with pytest.raises(RecipeError, match=message):
        prepare(tmp_path, tmp_path / "data", ["eng"])
    report = prepare(other, tmp_path / "data", ["eng"])
    assert report["release"] == "17.0"


def test_quotes_that_a_writer_of_csv_added_are_not_the_sentence(tmp_path):
    sentences = ['"""Good-bye,"" said he."', 'He said ""no"".', '""', '"Lone']
    folder = write_commonvoice(tmp_path, "en", [cv_row("en", n) for n in range(4)])
    columns = CV_HEADER.split("\t")
    header = "\t".join([*columns[:2], "sentence_id", *columns[2:]])
    rows = []
    for number, sentence in enumerate(sentences):
        values = cv_row("en", number, sentence).split("\t")
        rows.append("\t".join([*values[:2], "abc", *values[2:]]))
    write_lines(folder / "validated.tsv", header, *rows)
    prepare(tmp_path, tmp_path / "data", ["eng"])
    text = read_table(tmp_path / "data/pretrain/commonvoice/train_eng/text")
    # The third has no words left, so no line.
    assert list(text.values()) == ['"Good-bye," said he.', 'He said "no".', '"Lone']


def test_durations_that_no_clip_has_are_not_counted(tmp_path):
    folder = write_commonvoice(tmp_path, "en", [cv_row("en", n) for n in range(3)])
    for wrong in ("0", "-1", "99999999", ""):
        lines = [f"common_voice_en_{n}.mp3\t5000" for n in (0, 1)]
        lines.append(f"common_voice_en_2.mp3\t{wrong}")
        write_lines(folder / "clip_durations.tsv", "clip\tduration[ms]", *lines)
        report = prepare(tmp_path, tmp_path / "data", ["eng"])
        assert report["pretraining_hours"]["eng"] is None, wrong
