"""mHuBERT-147's manifests: root line, four columns, languages mixed, files gone."""

from functools import partial

import pytest

from espnet2_lamer.data.corpora import prepare as preparation
from espnet2_lamer.errors import RecipeError
from espnet2_lamer.fileio.datadir import read_table
from tests.corpus_trees import write_lines, write_noise

prepare = partial(preparation.prepare, "mhubert147")


def _row(name, label, dataset, samples=48000):
    return f"{name}\t{samples}\t{label}\t{dataset}"


@pytest.fixture
def manifests(tmp_path):
    """Two manifests as they are published, and their audio."""
    audio = tmp_path / "audio"
    folder = tmp_path / "manifest"
    cv = [
        _row("common_voice_zh-HK_1.wav", "zh-HK", "CV"),
        _row("common_voice_yue_2.wav", "yue", "CV"),
        _row("common_voice_zh-CN_3.wav", "zh-CN", "CV"),
        _row("common_voice_zh-TW_4.wav", "zh-TW", "CV"),
        _row("common_voice_eo_5.wav", "eo", "CV"),
        _row("common_voice_en_6.wav", "en", "CV"),
    ]
    write_lines(folder / "CV_12.tsv", audio, *cv)
    other = [
        _row("SSB0005/SSB00050001.wav", "zh-CN", "Aishell-3"),
        _row("Y0__U__S126---0329.320-0339.810.wav", "zh-CN", "VL"),
    ]
    write_lines(folder / "aishell3.tsv", audio, *other)
    for row in (*cv, *other):
        write_noise(audio / row.split("\t")[0])
    return folder


def _wavs(tmp_path, lang):
    return read_table(tmp_path / f"data/pretrain/mhubert147/train_{lang}/wav.scp")


def _counts(report, manifest):
    return report["sets"]["manifests"]["sources"][manifest]


def test_rows_of_the_languages_and_datasets_asked_for_are_taken(manifests, tmp_path):
    report = prepare(manifests, tmp_path / "data", ["eng", "cmn", "yue"])
    assert list(_wavs(tmp_path, "yue")) == [
        "mhubert147_cv_common_voice_yue_2",
        "mhubert147_cv_common_voice_zh-HK_1",
    ]
    assert _wavs(tmp_path, "cmn") == {
        "mhubert147_aishell3_SSB0005-SSB00050001": str(
            tmp_path / "audio/SSB0005/SSB00050001.wav"
        ),
        "mhubert147_cv_common_voice_zh-CN_3": str(
            tmp_path / "audio/common_voice_zh-CN_3.wav"
        ),
    }
    assert len(_wavs(tmp_path, "eng")) == 1
    folder = tmp_path / "data/pretrain/mhubert147/train_yue"
    assert list(read_table(folder / "utt2source").values()) == [
        "mhubert147-cv-yue",
        "mhubert147-cv-zh-HK",
    ]
    # zh-TW is none of the paper's two; VoxLingua107 is left out by default.
    assert _counts(report, "CV_12.tsv")["left_out"] == {"other_language": 2}
    assert _counts(report, "aishell3.tsv")["left_out"] == {"other_dataset_vl": 1}
    # Hours are those of the column, at 16 kHz.
    assert report["pretraining_hours"]["yue"] == pytest.approx(2 * 3 / 3600, abs=1e-4)


def test_datasets_can_be_chosen(manifests, tmp_path):
    prepare(manifests, tmp_path / "data", ["cmn"], datasets=["CV", "VL"])
    assert [utt.split("_")[1] for utt in _wavs(tmp_path, "cmn")] == ["cv", "vl"]
    prepare(manifests / "CV_12.tsv", tmp_path / "data", ["cmn"], datasets=[])
    assert list(_wavs(tmp_path, "cmn")) == ["mhubert147_cv_common_voice_zh-CN_3"]


def test_files_that_are_gone_are_counted_per_language_and_dataset(manifests, tmp_path):
    gone = tmp_path / "audio/common_voice_yue_2.wav"
    gone.unlink()
    langs = ["cmn", "yue"]
    with pytest.raises(RecipeError, match="mhubert147-cv-yue: 1 of 1 rows"):
        prepare(manifests, tmp_path / "data", langs, max_missing=90)
    report = prepare(manifests, tmp_path / "data", langs, max_missing=100)
    sources = report["sets"]["pretrain/train_yue"]["sources"]
    assert sources["mhubert147-cv-yue"]["left_out"] == {"missing": 1}
    assert sources["mhubert147-cv-zh-HK"]["left_out"] == {}
    assert len(_wavs(tmp_path, "yue")) == 1


def test_clips_are_found_in_commonvoices_own_archive(manifests, tmp_path):
    root = tmp_path / "cv-corpus-11.0-2022-09-21"
    clip = write_noise(root / "zh-HK/clips/common_voice_zh-HK_1.mp3", 0.2, 32000)
    flac = write_noise(root / "common_voice_yue_2.flac")
    prepare(manifests, tmp_path / "data", ["yue"], audio_root=root)
    assert list(_wavs(tmp_path, "yue").values()) == [str(flac), str(clip)]


def test_odd_rows_are_counted_by_manifest(manifests, tmp_path):
    path = manifests / "CV_12.tsv"
    with open(path, "ab") as handle:
        handle.write(b"x.wav\tmany\tyue\tCV\nx.wav\t9\tyue\n\n")
        handle.write(
            b"../x.wav\t9\tyue\tCV\n/etc/passwd\t9\tyue\tCV\n\xff\t9\tyue\tCV\n"
        )
        handle.write(_row("common_voice_yue_2.wav", "yue", "CV").encode())
    report = prepare(manifests, tmp_path / "data", ["yue"], max_missing=80)
    assert _counts(report, "CV_12.tsv")["left_out"]["broken_row"] == 5
    counts = report["sets"]["pretrain/train_yue"]["sources"]["mhubert147-cv-yue"]
    assert counts["left_out"] == {"duplicate": 1}
    listing = (tmp_path / "data/mhubert147.left_out.tsv").read_text()
    assert f"{path}:8\n" in listing
    with pytest.raises(RecipeError, match=r"manifests, CV_12\.tsv: 5 of 8 rows"):
        prepare(manifests, tmp_path / "data", ["yue"])


@pytest.mark.parametrize(
    ("first", "message"),
    [
        (
            "PATH TO FOLDER GOES HERE",
            r"CV_12\.tsv:1: the audio's folder PATH TO .* is not here; set MHUBERT",
        ),
        (
            "a.wav\t1\tyue\tCV",
            r"CV_12\.tsv:1: found 'a\.wav.*expected the folder of the",
        ),
        (None, r"found notes\.txt, expected \*\.tsv of mhubert147"),
    ],
)
def test_what_is_no_manifest_is_refused(tmp_path, first, message):
    if first is None:
        write_lines(tmp_path / "m/notes.txt")
    else:
        write_lines(tmp_path / "m/CV_12.tsv", first, _row("b.wav", "yue", "CV"))
    with pytest.raises(RecipeError, match=message):
        prepare(tmp_path / "m", tmp_path / "data", ["yue"])
