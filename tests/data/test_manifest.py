"""Manifests and folders of anybody's audio."""

import json
import os
import unicodedata
from collections import Counter

import pytest

from espnet2_lamer.data.manifest import prepare_manifest
from espnet2_lamer.data.sources import READERS, Reading, Source
from espnet2_lamer.errors import RecipeError
from espnet2_lamer.fileio.datadir import read_table

SIZES = {"train": 8, "dev": 1, "test": 1}


def read_manifest(path):
    return READERS["tsv"](Source("tsv", str(path)), Reading())


def read_folder(path):
    return READERS["folder"](Source("folder", str(path)), Reading())


_HEADER = "utt_id\tpath\tlang\tsplit\ttext\tspeaker\tromanisation\tsource"


def _row(utt, lang="eng", split="train", text="a", path=None, source="web", **more):
    values = [utt, path or f"audio/{utt}.wav", lang, split, text]
    values += [more.get("speaker", "s 1"), more.get("romanisation", ""), source]
    return "\t".join(values)


@pytest.fixture
def manifest(tmp_path):
    def write(*lines, header=_HEADER, files=True):
        path = tmp_path / "corpus/m.tsv"
        path.parent.mkdir(exist_ok=True)
        path.write_text("\n".join([header, *lines]) + "\n", encoding="utf-8")
        for line in lines if files else ():
            audio = path.parent / line.split("\t")[1]
            audio.parent.mkdir(exist_ok=True)
            audio.touch()
        return path

    return write


def test_rows_become_sets_per_split_and_language(manifest, tmp_path):
    path = manifest(
        _row("a", text="one  two "),
        _row("b", split="dev"),
        _row("c", "cmn", "test", "好", romanisation="hao3"),
    )
    stats = prepare_manifest(path, tmp_path / "data")
    assert stats["sets"] == {"dev_eng": 1, "test_cmn": 1, "train_eng": 1}
    train = tmp_path / "data/train_eng"
    assert read_table(train / "wav.scp") == {"a": str(tmp_path / "corpus/audio/a.wav")}
    assert read_table(train / "text") == {"a": "one two"}
    assert read_table(train / "utt2spk") == {"a": "s_1"}
    assert read_table(train / "utt2lang") == {"a": "eng"}
    assert read_table(train / "utt2source") == {"a": "web"}
    assert not (train / "romanisation").exists()
    test = tmp_path / "data/test_cmn"
    assert read_table(test / "romanisation") == {"c": "hao3"}
    assert json.loads((tmp_path / "data/manifest.json").read_text()) == stats


def test_three_columns_are_enough_and_unknown_ones_are_ignored(manifest, tmp_path):
    path = manifest(
        "a\tx.wav\teng\t7", header="utt_id\tpath\tlang\tlicence", files=True
    )
    assert prepare_manifest(path, tmp_path / "data")["used"] == 1
    # Without a speaker column every utterance is a speaker of its own.
    assert read_table(tmp_path / "data/train_eng/utt2spk") == {"a": "a"}


def test_windows_files_are_read(manifest, tmp_path):
    path = manifest(_row("a"))
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes().replace(b"\n", b"\r\n"))
    (row,) = read_manifest(path)
    assert (row.utt_id, row.source) == ("a", "web")


def test_rows_without_split_are_divided_80_10_10_by_hash(manifest, tmp_path):
    lines = [_row(f"u{n:03d}", split="") for n in range(100)]
    lines += [_row(f"y{n}", "yue", "") for n in range(3)]
    path = manifest(*lines)
    first = prepare_manifest(path, tmp_path / "data")["sets"]
    assert first == {
        **{"train_eng": 80, "dev_eng": 10, "test_eng": 10},
        **{"train_yue": 1, "dev_yue": 1, "test_yue": 1},
    }
    test = read_table(tmp_path / "data/test_eng/wav.scp")
    manifest(*lines[::-1])
    prepare_manifest(path, tmp_path / "data")
    assert read_table(tmp_path / "data/test_eng/wav.scp") == test
    prepare_manifest(path, tmp_path / "data", seed=1)
    assert read_table(tmp_path / "data/test_eng/wav.scp") != test


def test_what_was_tested_before_and_is_trained_on_now_is_counted(
    manifest, tmp_path, caplog
):
    lines = [_row(f"u{n}", split="", speaker=f"s{n}", text=f"{n}") for n in range(30)]
    path = manifest(*lines)
    prepare_manifest(path, tmp_path / "data")
    prepare_manifest(path, tmp_path / "data")
    assert "in train now" not in caplog.text
    prepare_manifest(path, tmp_path / "data", seed=1)
    assert "3 utterances that were in test are in train now" in caplog.text


def test_a_given_split_that_flatters_is_kept_and_said(manifest, tmp_path, caplog):
    path = manifest(
        *(_row(f"a{n}", text=f"{n}", speaker=f"s{n}") for n in range(4)),
        _row("b0", split="test", text="0.", speaker="s9"),
        _row("b1", split="test", text="9", speaker="s1"),
    )
    stats = prepare_manifest(path, tmp_path / "data")
    assert stats["sets"] == {"train_eng": 4, "test_eng": 2}
    assert stats["test_in_train"] == {"eng": {"speakers": 50, "sentences": 50}}
    assert "eng: train has 50 % of the speakers of the test set" in caplog.text


def test_utterances_without_text_keep_their_split_and_are_counted(manifest, tmp_path):
    path = manifest(
        _row("a", text=""), _row("b", split="test", text=""), _row("c", split="test")
    )
    stats = prepare_manifest(path, tmp_path / "data")
    assert stats["no_text"] == {"eng": 2}
    assert list(read_table(tmp_path / "data/train_eng/wav.scp")) == ["a"]
    assert list(read_table(tmp_path / "data/test_eng/wav.scp")) == ["b", "c"]
    assert list(read_table(tmp_path / "data/test_eng/text")) == ["c"]


def test_languages_and_sources_can_be_left_out_and_are_counted(manifest, tmp_path):
    path = manifest(
        _row("a", source="accented"), _row("b"), _row("c", "cmn"), _row("d", "deu")
    )
    stats = prepare_manifest(path, tmp_path / "data", ["en", "zh-CN"], ["accented"])
    assert stats["langs"] == ["eng", "cmn"]
    assert stats["dropped"] == {
        "other_language": {"deu": 1},
        "excluded_source": {"eng": 1},
    }
    assert (stats["rows"], stats["used"]) == (4, 2)
    assert not (tmp_path / "data/train_deu").exists()


@pytest.mark.parametrize(
    "sources, expected",
    [
        (("web", "tv"), True),
        (("web", "web"), False),
        (("", "tv"), None),
    ],
)
def test_channel_confound_is_noted(manifest, tmp_path, caplog, sources, expected):
    path = manifest(_row("a", source=sources[0]), _row("b", "cmn", source=sources[1]))
    stats = prepare_manifest(path, tmp_path / "data")
    assert stats["channel_confounded"] is expected
    assert ("channel-confounded" in caplog.text) == (expected is True)


def test_sources_say_whether_they_cover_several_languages(manifest, tmp_path):
    path = manifest(_row("a"), _row("b", "cmn"), _row("c", "cmn", source="tv"))
    assert prepare_manifest(path, tmp_path / "data")["sources"] == {
        "tv": {"utterances": {"cmn": 1}, "covers_several_languages": False},
        "web": {"utterances": {"cmn": 1, "eng": 1}, "covers_several_languages": True},
    }


def test_sets_of_an_earlier_corpus_do_not_stay(manifest, tmp_path):
    mini = tmp_path / "data/asr_train_eng"
    mini.mkdir(parents=True)
    (mini / "mini.json").write_text("{}")
    own = tmp_path / "data/own_set"
    own.mkdir()
    path = manifest(_row("a"), _row("b", split="dev"))
    prepare_manifest(path, tmp_path / "data")
    assert not mini.exists() and own.exists()
    manifest(_row("a"))
    prepare_manifest(path, tmp_path / "data")
    assert not (tmp_path / "data/dev_eng").exists()


@pytest.mark.parametrize(
    "lines, message",
    [
        ([_row("a"), _row("b") + "\tmore"], r"m\.tsv:3: found 9 columns, expected 8"),
        ([_row("a"), "b\tx"], r"m\.tsv:3: found 2 columns"),
        ([_row("a"), "", _row("a", "cmn")], r"m\.tsv:4: .*'a' occurs twice.*m\.tsv:2"),
        ([_row("a", "english")], r"m\.tsv:2: unknown language 'english'"),
        ([_row("a", split="eval")], r"m\.tsv:2: split 'eval'; expected train, dev"),
        ([_row("", path="audio/a.wav")], r"m\.tsv:2: column utt_id is empty"),
        ([_row("a", lang="")], r"m\.tsv:2: column lang is empty"),
        ([_row("a b")], r"m\.tsv:2: utterance id 'a b' holds a space"),
        ([_row("a/b", path="audio/a.wav")], r"m\.tsv:2: .* holds a space or a slash"),
        ([], r"m\.tsv: only a header line"),
    ],
)
def test_bad_rows_are_named_by_line_and_nothing_is_written(
    manifest, tmp_path, lines, message
):
    with pytest.raises(RecipeError, match=message):
        prepare_manifest(manifest(*lines, files=False), tmp_path / "data")
    assert not (tmp_path / "data").exists()


@pytest.mark.parametrize(
    "header, message",
    [
        ("utt_id\tpath", r"m\.tsv:1: missing column lang; found utt_id, path"),
        ("utt_id,path,lang", r"missing column utt_id, path, lang.*tabs"),
        ("utt_id\tpath\tlang\tpath", "column 'path' occurs twice"),
    ],
)
def test_bad_headers_are_refused(manifest, tmp_path, header, message):
    path = manifest(header=header)
    with pytest.raises(RecipeError, match=message):
        prepare_manifest(path, tmp_path / "data")


def test_missing_audio_is_listed_and_counted(manifest, tmp_path):
    path = manifest(*[_row(f"u{n:02d}") for n in range(13)], files=False)
    (path.parent / "audio").mkdir()
    (path.parent / "audio/u00.wav").touch()
    with pytest.raises(RecipeError, match="12 of 13 audio files not found") as caught:
        prepare_manifest(path, tmp_path / "data")
    assert str(caught.value).count("audio/u") == 10
    assert "... and 2 more" in str(caught.value)
    assert not (tmp_path / "data").exists()


def test_a_requested_language_without_utterances_is_named(manifest, tmp_path):
    path = manifest(_row("a", source="tv"), _row("b", "cmn"))
    with pytest.raises(RecipeError, match=r"language yue \(Yue.*found cmn \(M"):
        prepare_manifest(path, tmp_path / "data", ["eng", "yue"])
    with pytest.raises(RecipeError, match="language eng .*before sources were exc"):
        prepare_manifest(path, tmp_path / "data", ["eng"], ["tv"])


def test_an_unknown_source_to_exclude_is_named(manifest, tmp_path):
    path = manifest(_row("a", source="tv"), _row("b"))
    with pytest.raises(RecipeError, match="no source 'tb' to exclude; found tv, web"):
        prepare_manifest(path, tmp_path / "data", exclude_sources=["tb"])


def test_a_missing_manifest_is_named(tmp_path):
    with pytest.raises(RecipeError, match=r"none\.tsv: manifest not found"):
        prepare_manifest(tmp_path / "none.tsv", tmp_path / "data")


def test_a_folder_per_language_is_a_corpus(tmp_path):
    root = tmp_path / "speech"
    names = [f"en/{n}.wav" for n in range(10)]
    names += [f"yue/anna lee/{n}.FLAC" for n in range(10)] + ["yue/notes.txt"]
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    rows = read_folder(root)
    assert Counter(row.lang for row in rows) == {"eng": 10, "yue": 10}
    assert rows[10].utt_id == "yue_anna_lee-0"
    assert rows[10].speaker == "yue_anna_lee"
    assert rows[0].speaker == ""
    stats = prepare_manifest(root, tmp_path / "data")
    # Language identification is tested without text, too.
    sets = {f"{s}_{x}": n for s, n in SIZES.items() for x in ("eng", "yue")}
    assert stats["sets"] == sets
    assert stats["kept_apart"]["yue"] == {"test": "utterances", "dev": "utterances"}
    assert stats["test_in_train"] == {"yue": {"speakers": 100}}


def test_folders_that_are_no_corpus_are_refused(tmp_path):
    (tmp_path / "a/eng").mkdir(parents=True)
    with pytest.raises(RecipeError, match=r"no audio; expected files \.wav"):
        read_folder(tmp_path / "a")
    (tmp_path / "a/notes").mkdir()
    with pytest.raises(RecipeError, match="notes: unknown language 'notes'"):
        read_folder(tmp_path / "a")


def test_files_of_one_name_in_a_folder_are_refused(tmp_path):
    for name in ("eng/a b.wav", "eng/a_b.wav"):
        path = tmp_path / "speech" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    with pytest.raises(RecipeError, match="'eng_a_b' occurs twice"):
        read_folder(tmp_path / "speech")


def _copied_from_a_mac(root):
    for path in [p for p in root.rglob("*.wav") if p.is_file()]:
        path.with_name(f"._{path.name}").write_bytes(b"\0\5\x16\7")
    (root / "en/.DS_Store").write_bytes(b"Bud1")
    (root / "__MACOSX/en").mkdir(parents=True)
    (root / "__MACOSX/en/._0.wav").touch()
    (root / "en/__MACOSX").mkdir()
    (root / "en/__MACOSX/a.wav").touch()


def test_hidden_companions_are_no_audio_and_other_suffixes_are_counted(
    tmp_path, caplog
):
    root = tmp_path / "speech"
    names = [f"{n}.wav" for n in range(3)] + ["3.aiff", "4.OGA", "5.sph", "6.m4a", "t"]
    for name in names:
        (root / "en").mkdir(parents=True, exist_ok=True)
        (root / "en" / name).touch()
    _copied_from_a_mac(root)
    (root / "loose.wav").touch()
    stats = prepare_manifest(root, tmp_path / "data")
    assert stats["used"] == 6
    assert {k: dict(v) for k, v in stats["dropped"].items() if v} == {
        "hidden or added by a Mac's copy": {"eng": 5},
        "audio in no language's folder": {"unknown language": 1},
        "suffix .m4a, not read": {"eng": 1},
        "suffix none, not read": {"eng": 1},
    }
    assert "suffix .m4a, not read: 1 of eng" in caplog.text
    # A manifest that a program made of such a folder.
    lines = [f"{p.stem}\t{p}\teng\n" for p in sorted((root / "en").glob("*.wav"))]
    (tmp_path / "m.tsv").write_text("utt_id\tpath\tlang\n" + "".join(lines))
    stats = prepare_manifest(tmp_path / "m.tsv", tmp_path / "data")
    assert stats["used"] == 3
    assert stats["dropped"]["hidden or added by a Mac's copy"] == {"eng": 3}


@pytest.mark.parametrize("name", [b"\xe9t\xe9.wav", b"a\nb.wav"])
def test_names_that_no_table_can_hold_are_refused_with_what_to_do(tmp_path, name):
    (tmp_path / "speech/fra").mkdir(parents=True)
    (tmp_path / "speech/fra/a.wav").touch()
    (tmp_path / "speech/fra" / os.fsdecode(name)).touch()
    with pytest.raises(RecipeError, match="1 of 2 file names .* convmv"):
        prepare_manifest(tmp_path / "speech", tmp_path / "data")
    assert not (tmp_path / "data").exists()


def test_accents_are_found_however_they_are_composed(tmp_path):
    composed, decomposed = (unicodedata.normalize(f, "été") for f in ("NFC", "NFD"))
    for one, other in ((composed, decomposed), (decomposed, composed)):
        folder = tmp_path / str(len(one))
        folder.mkdir()
        (folder / f"{one}.wav").touch()
        (folder / "m.tsv").write_text(f"utt_id\tpath\tlang\na\t{other}.wav\tfra\n")
        prepare_manifest(folder / "m.tsv", folder / "data")
        wavs = read_table(folder / "data/train_fra/wav.scp")
        assert wavs == {"a": str(folder / f"{one}.wav")}


def test_linked_folders_are_read_once_and_loops_end(tmp_path):
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere/a.wav").touch()
    (tmp_path / "speech/eng").mkdir(parents=True)
    (tmp_path / "speech/eng/anna").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "elsewhere/up").symlink_to(tmp_path / "elsewhere")
    assert [row.utt_id for row in read_folder(tmp_path / "speech")] == ["eng_anna-a"]


def test_a_file_under_two_ids_stays_in_the_set_that_is_scored(tmp_path, caplog):
    rows = []
    for n in range(9):
        (tmp_path / f"{n}.wav").touch()
        split = ("train", "dev", "test")[n % 3]
        rows.append(f"{n}\t{n}.wav\teng\t{split}\twords\n")
    rows += ["again2\t2.wav\teng\ttrain\twords\n", "again1\t1.wav\teng\ttest\twords\n"]
    rows += ["again0\t./0.wav\teng\ttrain\twords\n"]
    (tmp_path / "m.tsv").write_text("utt_id\tpath\tlang\tsplit\ttext\n" + "".join(rows))
    stats = prepare_manifest(tmp_path / "m.tsv", tmp_path / "data")
    sets = {
        split: set(read_table(tmp_path / f"data/{split}_eng/wav.scp").values())
        for split in ("train", "dev", "test")
    }
    assert not sets["train"] & sets["test"] and not sets["train"] & sets["dev"]
    assert str(tmp_path / "1.wav") in sets["test"]
    assert sum(stats["sets"].values()) == 9
    assert "the same file under another id: 3 of eng" in caplog.text


def test_a_corpus_with_a_name_that_is_not_utf8_ends_in_one_line(tmp_path):
    from espnet2_lamer.fileio.atomic import write_text
    from espnet2_lamer.fileio.system import system_message

    name = os.fsdecode(b"S0002/\xe9.wav")
    with pytest.raises(UnicodeEncodeError) as caught:
        write_text(tmp_path / "wav.scp", "a a.wav\n" * 99 + name)
    assert len(system_message(caught.value)) < 200
    assert r"S0002/\udce9.wav" in system_message(caught.value)
