"""FLEURS: lists without header, audio in archives that are unpacked once."""

import io
import tarfile
from functools import partial

import pytest

from espnet2_lamer.data.corpora import archive as archives
from espnet2_lamer.data.corpora import prepare as preparation
from espnet2_lamer.data.corpora.archive import extract_once
from espnet2_lamer.errors import RecipeError
from espnet2_lamer.fileio.atomic import atomic_dir
from espnet2_lamer.fileio.datadir import read_table
from tests.corpus_trees import fleurs_row, write_fleurs, write_lines
from tests.killed import killed_in

prepare = partial(preparation.prepare, "fleurs")

ROWS = {
    "train": [fleurs_row(0), fleurs_row(1), fleurs_row(2, "another one")],
    "dev": [fleurs_row(3)],
    "test": [fleurs_row(4)],
}


@pytest.fixture
def english(tmp_path):
    return write_fleurs(tmp_path, "en_us", ROWS)


def _table(tmp_path, name, table="wav.scp"):
    return read_table(tmp_path / "data/eval/fleurs" / name / table)


@pytest.mark.parametrize("packed", [True, False])
def test_every_split_is_an_evaluation_set_and_none_is_pretraining(tmp_path, packed):
    folder = write_fleurs(tmp_path, "en_us", ROWS, packed=packed)
    report = prepare(folder.parent, tmp_path / "data", ["eng"])
    assert [s["utterances"] for s in report["sets"].values()] == [1, 1, 3]
    assert sorted(report["sets"]) == ["eval/dev_eng", "eval/test_eng", "eval/train_eng"]
    assert not (tmp_path / "data/pretrain").exists()
    unpacked = tmp_path / "data/audio/fleurs/en_us" if packed else folder / "audio"
    assert _table(tmp_path, "dev_eng") == {
        "fleurs_en_us_10003": str(
            unpacked / ("dev/dev" if packed else "dev") / "10003.wav"
        )
    }
    assert all(
        open(path, "rb").read(4) == b"RIFF"
        for path in _table(tmp_path, "train_eng").values()
    )


def test_transcription_and_samples_are_the_columns_of_the_format(english, tmp_path):
    report = prepare(english.parent, tmp_path / "data", ["eng"])
    assert list(_table(tmp_path, "train_eng", "text").values()) == [
        "he said so",
        "he said so",
        "another one",
    ]
    # One sentence read twice is two utterances, by speakers nobody names.
    assert len(set(_table(tmp_path, "train_eng", "utt2spk").values())) == 3
    hours = report["sets"]["eval/train_eng"]["sources"]["fleurs-en_us"]["hours"]
    assert hours == pytest.approx(3 * 3200 / 16000 / 3600, abs=1e-4)


def test_characters_separated_by_spaces_are_joined(tmp_path):
    folder = write_fleurs(
        tmp_path, "yue_hant_hk", {s: [fleurs_row(9, "食 飯 未 呀")] for s in ROWS}
    )
    prepare(folder.parent, tmp_path / "data", ["yue", "deu"])
    assert _table(tmp_path, "test_yue", "text") == {
        "fleurs_yue_hant_hk_10009": "食飯未呀"
    }


def test_archives_are_unpacked_once_and_again_only_when_replaced(
    english, tmp_path, monkeypatch
):
    prepare(english.parent, tmp_path / "data", ["eng"])
    unpacked = tmp_path / "data/audio/fleurs/en_us"
    before = {p: p.stat().st_ino for p in unpacked.rglob("*.wav")}
    assert len(before) == 5
    monkeypatch.setattr(archives.tarfile, "open", None)
    prepare(english.parent, tmp_path / "data", ["eng"])
    monkeypatch.undo()
    assert {p: p.stat().st_ino for p in unpacked.rglob("*.wav")} == before
    (english / "audio/dev.tar.gz").unlink()
    audio = write_fleurs(tmp_path / "new", "en_us", ROWS) / "audio/dev.tar.gz"
    audio.rename(english / "audio/dev.tar.gz")
    prepare(english.parent, tmp_path / "data", ["eng"])
    again = {p: p.stat().st_ino for p in unpacked.rglob("*.wav")}
    assert [p.parent.name for p in before if again[p] != before[p]] == ["dev"]


def test_an_extraction_that_was_killed_starts_again_and_leaves_nothing(
    english, tmp_path, monkeypatch
):
    unpacked = tmp_path / "data/audio/fleurs/en_us"
    # What a killed process leaves: other archives done, this one half way.
    extract_once(english / "audio/train.tar.gz", unpacked / "train")
    assert killed_in(atomic_dir, unpacked / "dev").is_dir()
    prepare(english.parent, tmp_path / "data", ["eng"])
    assert sorted(p.name for p in unpacked.iterdir()) == ["dev", "test", "train"]
    (path,) = _table(tmp_path, "dev_eng").values()
    assert open(path, "rb").read(4) == b"RIFF"


def _add(tar, name, **changes):
    member = tarfile.TarInfo(name)
    member.size = 4
    for key, value in changes.items():
        setattr(member, key, value)
    tar.addfile(member, io.BytesIO(b"evil"))


@pytest.mark.parametrize(
    "member",
    [
        {"name": "../../outside.wav"},
        {"name": "dev/link.wav", "type": tarfile.SYMTYPE, "linkname": "/etc/passwd"},
        {"name": "dev/device.wav", "type": tarfile.CHRTYPE},
    ],
)
def test_members_that_leave_the_folder_are_refused(tmp_path, member):
    archive = tmp_path / "in/dev.tar.gz"
    archive.parent.mkdir()
    with tarfile.open(archive, "w:gz") as tar:
        _add(tar, **member)
    with pytest.raises(RecipeError, match=r"dev\.tar\.gz: .*download it again"):
        extract_once(archive, tmp_path / "out/a/dev")
    assert not list((tmp_path / "out").rglob("*.wav"))
    assert not (tmp_path / "out/a/dev").exists()


@pytest.mark.parametrize("damage", ["truncated", "no archive", "empty"])
def test_a_damaged_archive_is_named_and_nothing_appears(english, tmp_path, damage):
    archive = english / "audio/train.tar.gz"
    data = archive.read_bytes()
    archive.write_bytes(
        {"truncated": data[: len(data) // 2], "no archive": b"<html>", "empty": b""}[
            damage
        ]
    )
    message = r"audio/train\.tar\.gz: not a whole tar archive .*download it again"
    with pytest.raises(RecipeError, match=message):
        prepare(english.parent, tmp_path / "data", ["eng"])
    assert not (tmp_path / "data/audio/fleurs/en_us/train").exists()
    assert not (tmp_path / "data/eval").exists()


def test_an_archive_of_another_split_is_refused(english, tmp_path):
    dev, test = (english / f"audio/{name}.tar.gz" for name in ("dev", "test"))
    test.write_bytes(dev.read_bytes())
    message = r"test\.tar\.gz: found archive\.json, dev, expected test/\*\.wav"
    with pytest.raises(RecipeError, match=message):
        prepare(english.parent, tmp_path / "data", ["eng"])


def test_odd_rows_are_counted_and_listed(tmp_path):
    good = [fleurs_row(n) for n in range(6)]
    folder = write_fleurs(tmp_path, "en_us", {"train": good}, packed=False)
    odd = [
        good[0],
        "",
        fleurs_row(1, ""),
        fleurs_row(2, "tab\tin text"),
        good[3].replace("10003.wav", "../../3.wav"),
        good[4].replace("3200", "many"),
        fleurs_row(99),
        good[0],
    ]
    write_lines(folder / "train.tsv", *odd)
    report = prepare(tmp_path / "fleurs", tmp_path / "data", ["eng"], max_missing=70)
    counts = report["sets"]["eval/train_eng"]["sources"]["fleurs-en_us"]
    assert counts["left_out"] == {"broken_row": 3, "duplicate": 1, "missing": 1}
    assert counts["remarks"] == {"no_text": 1}
    assert list(_table(tmp_path, "train_eng")) == [
        "fleurs_en_us_10000",
        "fleurs_en_us_10001",
    ]
    assert list(_table(tmp_path, "train_eng", "text")) == ["fleurs_en_us_10000"]
    listing = (tmp_path / "data/fleurs.left_out.tsv").read_text()
    assert f"broken_row\t{folder / 'train'}.tsv:4" in listing


def test_what_is_absent_is_named(english, tmp_path):
    (english / "audio/test.tar.gz").unlink()
    with pytest.raises(
        RecipeError, match=r"test\.tar\.gz: file not found, and no fold"
    ):
        prepare(english.parent, tmp_path / "data", ["eng"])
    with pytest.raises(RecipeError, match=r"yue_hant_hk/train\.tsv: file not found"):
        prepare(english.parent, tmp_path / "data", ["yue"])
    with pytest.raises(
        RecipeError, match=r"found dev\.tar.*, expected en_us or cmn_han"
    ):
        prepare(english / "audio", tmp_path / "data", ["eng"])


def test_the_folder_of_the_download_is_found(english, tmp_path):
    # As on the hub: data/<code>.
    (tmp_path / "download").mkdir()
    english.parent.rename(tmp_path / "download/data")
    report = prepare(tmp_path / "download", tmp_path / "data", ["eng"])
    assert report["root"] == str(tmp_path / "download/data")
