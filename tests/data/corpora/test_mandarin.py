"""THCHS-30, AISHELL-1 and AISHELL-3: their layouts and what is odd in them."""

import json
import shutil
import tarfile
from pathlib import Path

import pytest

from espnet2_lamer.data.corpora.mandarin import MANDARIN
from espnet2_lamer.data.corpora.prepare import prepare
from espnet2_lamer.errors import RecipeError
from espnet2_lamer.fileio.datadir import read_table
from tests.corpus_trees import (
    write_aishell1,
    write_aishell3,
    write_lines,
    write_noise,
    write_thchs30,
)

WRITE = {
    "thchs30": write_thchs30,
    "aishell1": write_aishell1,
    "aishell3": write_aishell3,
}


def _counts(report):
    corpus = report["corpus"]
    return report["sets"]["pretrain/train_cmn"]["sources"][corpus]


@pytest.mark.parametrize(
    ("corpus", "utts", "text", "speaker"),
    [
        ("thchs30", ["A11_0", "A11_1"], "绿是阳春烟景", "A11"),
        (
            "aishell1",
            ["BAC009S0002W0122", "BAC009S0002W0123", "BAC009S0003W0121"],
            "而对楼市成交抑制作用最大的限购",
            "S0002",
        ),
        (
            "aishell3",
            ["SSB00050001", "SSB00050002", "SSB00090001"],
            "广州女大学生",
            "SSB0005",
        ),
    ],
)
def test_the_training_set_alone_is_pretraining_data(
    tmp_path, corpus, utts, text, speaker
):
    root = WRITE[corpus](tmp_path)
    report = prepare(corpus, root, tmp_path / "data", ["eng", "cmn", "yue"])
    folder = tmp_path / "data/pretrain" / corpus / "train_cmn"
    ids = [f"{corpus}_{utt}" for utt in utts]
    assert list(read_table(folder / "wav.scp")) == ids
    assert set(read_table(folder / "text").values()) == {text}
    assert read_table(folder / "utt2spk")[ids[0]] == f"{corpus}_{speaker}"
    assert set(read_table(folder / "utt2lang").values()) == {"cmn"}
    assert set(read_table(folder / "utt2source").values()) == {corpus}
    assert [p.name for p in folder.parent.iterdir()] == ["train_cmn"]
    assert not (tmp_path / "data/eval").exists()
    # Headers tell durations; 44.1 kHz files are not 16 kHz ones.
    assert report["pretraining_hours"]["cmn"] == pytest.approx(
        len(utts) * 0.2 / 3600, abs=1e-4
    )
    assert json.loads((tmp_path / f"data/{corpus}.json").read_text()) == report


@pytest.mark.parametrize("corpus", WRITE)
def test_other_languages_need_nothing_of_it(tmp_path, corpus):
    report = prepare(corpus, WRITE[corpus](tmp_path), tmp_path / "data", ["eng"])
    assert report["sets"] == {}
    assert not (tmp_path / "data/pretrain").exists()


@pytest.mark.parametrize("corpus", WRITE)
def test_an_incomplete_archive_is_warned_about(tmp_path, corpus, caplog):
    report = prepare(corpus, WRITE[corpus](tmp_path), tmp_path / "data", ["cmn"])
    assert f"the complete archive has {MANDARIN[corpus].complete}" in caplog.text
    assert report["sets"]["pretrain/train_cmn"]["expected"] == MANDARIN[corpus].complete


@pytest.mark.parametrize("corpus", WRITE)
def test_another_archive_under_its_name_is_refused(tmp_path, corpus):
    other = {"thchs30": write_aishell3, "aishell1": write_thchs30}
    root = other.get(corpus, write_aishell1)(tmp_path)
    with pytest.raises(RecipeError, match=f"{root.name}.*: found .*, expected "):
        prepare(corpus, root, tmp_path / "data", ["cmn"])
    with pytest.raises(RecipeError, match="none: folder not found, expected "):
        prepare(corpus, tmp_path / "none", tmp_path / "data", ["cmn"])


@pytest.mark.parametrize("corpus", WRITE)
def test_damaged_audio_is_left_out_and_counted(tmp_path, corpus):
    root = WRITE[corpus](tmp_path)
    wav, *_ = sorted(p for p in root.rglob("*.wav") if "train" in p.parts)
    wav.resolve().write_bytes(b"RIFF no audio at all")
    report = prepare(corpus, root, tmp_path / "data", ["cmn"], max_missing=60)
    assert _counts(report)["left_out"] == {"unreadable": 1}
    with pytest.raises(RecipeError, match=f"unreadable: .*{wav.name}"):
        prepare(corpus, root, tmp_path / "data", ["cmn"])


def test_thchs30_pointers_links_and_copies_of_transcripts_are_one_text(tmp_path):
    root = write_thchs30(tmp_path, ("A11_0", "A11_1", "A11_2"))
    for name in ("A11_1", "A11_2"):
        (root / f"train/{name}.wav.trn").unlink()
    (root / "train/A11_1.wav.trn").symlink_to("../data/A11_1.wav.trn")
    shutil.copy(root / "data/A11_2.wav.trn", root / "train/A11_2.wav.trn")
    prepare("thchs30", tmp_path, tmp_path / "data", ["cmn"])
    text = read_table(tmp_path / "data/pretrain/thchs30/train_cmn/text")
    assert list(text.values()) == ["绿是阳春烟景"] * 3


def test_thchs30_audio_is_found_where_links_did_not_survive(tmp_path):
    root = write_thchs30(tmp_path)
    (root / "train/A11_0.wav").unlink()
    (root / "train/A11_1.wav").unlink()
    (root / "train/A11_1.wav").symlink_to("/nowhere/A11_1.wav")
    report = prepare("thchs30", root, tmp_path / "data", ["cmn"])
    assert _counts(report)["utterances"] == 2
    wavs = read_table(tmp_path / "data/pretrain/thchs30/train_cmn/wav.scp")
    assert list(wavs.values()) == [str(root / f"data/A11_{n}.wav") for n in (0, 1)]


def test_thchs30_missing_audio_and_transcripts_are_counted(tmp_path):
    root = write_thchs30(tmp_path, ("A11_0", "A11_1", "A11_2"))
    (root / "data/A11_0.wav").unlink()
    (root / "data/A11_1.wav.trn").unlink()
    report = prepare("thchs30", root, tmp_path / "data", ["cmn"], max_missing=50)
    assert _counts(report)["left_out"] == {"missing": 1}
    assert _counts(report)["remarks"] == {"no_text": 1}
    text = read_table(tmp_path / "data/pretrain/thchs30/train_cmn/text")
    assert list(text) == ["thchs30_A11_2"]


def test_thchs30_pointers_lead_nowhere_else(tmp_path):
    root = write_thchs30(tmp_path)
    write_lines(tmp_path / "secret.wav.trn", "secret")
    write_lines(root / "train/A11_0.wav.trn", "../../secret.wav.trn")
    prepare("thchs30", root, tmp_path / "data", ["cmn"])
    text = read_table(tmp_path / "data/pretrain/thchs30/train_cmn/text")
    assert "secret" not in text.values()


def test_aishell1_speech_without_transcript_stays(tmp_path):
    root = write_aishell1(tmp_path)
    write_noise(root / "wav/train/S0002/BAC009S0002W0999.wav")
    report = prepare("aishell1", root, tmp_path / "data", ["cmn"])
    assert _counts(report)["utterances"] == 4
    assert _counts(report)["remarks"] == {"no_text": 1}
    folder = tmp_path / "data/pretrain/aishell1/train_cmn"
    assert "aishell1_BAC009S0002W0999" in read_table(folder / "wav.scp")
    assert "aishell1_BAC009S0002W0999" not in read_table(folder / "text")


def test_aishell1_transcripts_without_audio_are_missing_only_in_train(tmp_path):
    root = write_aishell1(tmp_path)
    (root / "wav/train/S0002/BAC009S0002W0123.wav").unlink()
    # Its transcript names it, but pretraining does not ask for dev.
    (root / "wav/dev/S0724/BAC009S0724W0121.wav").unlink()
    report = prepare("aishell1", root, tmp_path / "data", ["cmn"], max_missing=50)
    assert _counts(report)["left_out"] == {"missing": 1}
    assert _counts(report)["utterances"] == 2


@pytest.mark.parametrize("packed", [["S0002"], ["S0002", "S0003"]])
def test_aishell1_packed_speakers_are_named_with_the_command(tmp_path, packed):
    root = write_aishell1(tmp_path)
    # Archives stay where they were unpacked.
    for name in ("S0002", "S0003"):
        with tarfile.open(root / f"wav/{name}.tar.gz", "w:gz") as tar:
            tar.add(root / f"wav/train/{name}", f"train/{name}")
    prepare("aishell1", root, tmp_path / "data", ["cmn"])
    for name in packed:
        shutil.rmtree(root / "wav/train" / name)
    message = (
        rf"{len(packed)} speakers are still packed, .*tar xzf(?s:.*)S0002\.tar\.gz"
    )
    with pytest.raises(RecipeError, match=message):
        prepare("aishell1", root, tmp_path / "data", ["cmn"])


def test_thchs30_links_that_became_text_are_followed(tmp_path):
    root = write_thchs30(tmp_path)
    (root / "train/A11_0.wav").unlink()
    (root / "train/A11_0.wav").write_text("../data/A11_0.wav\r\n")
    report = prepare("thchs30", root, tmp_path / "data", ["cmn"])
    assert _counts(report)["utterances"] == 2 and not _counts(report)["left_out"]
    wavs = read_table(tmp_path / "data/pretrain/thchs30/train_cmn/wav.scp")
    assert [Path(p).parent.name for p in wavs.values()] == ["data", "train"]


@pytest.mark.parametrize("corpus", WRITE)
def test_what_a_mac_adds_to_a_copy_is_no_audio(tmp_path, corpus):
    root = WRITE[corpus](tmp_path)
    before = prepare(corpus, root, tmp_path / "data", ["cmn"])
    for path in [p for p in root.rglob("*") if p.is_file()]:
        path.with_name(f"._{path.name}").write_bytes(b"\0\5\x16\7" + bytes(500))
    assert prepare(corpus, root, tmp_path / "data", ["cmn"]) == before


def test_aishell3_pinyin_goes_and_odd_lines_cost_only_their_text(tmp_path):
    root = write_aishell3(tmp_path)
    write_lines(
        root / "train/content.txt",
        "SSB00050001.wav\t哪儿 nar3 绿 lv4 色 se4",
        "SSB00050002.wav 没 mei2 有 you3",
        "",
        "SSB00090001.wav\t去 qu4 K K T T V V",
    )
    report = prepare("aishell3", root, tmp_path / "data", ["cmn"])
    text = read_table(tmp_path / "data/pretrain/aishell3/train_cmn/text")
    assert text == {
        "aishell3_SSB00050001": "哪儿绿色",
        "aishell3_SSB00090001": "去 K K T T V V",
    }
    assert _counts(report)["remarks"] == {"no_text": 1, "unreadable_transcript": 1}


def test_aishell3_content_without_audio_is_missing(tmp_path):
    root = write_aishell3(tmp_path)
    (root / "train/wav/SSB0009/SSB00090001.wav").unlink()
    report = prepare("aishell3", root, tmp_path / "data", ["cmn"], max_missing=50)
    assert _counts(report)["left_out"] == {"missing": 1}
    listing = (tmp_path / "data/aishell3.left_out.tsv").read_text()
    assert "train/wav/SSB0009/SSB00090001.wav" in listing
