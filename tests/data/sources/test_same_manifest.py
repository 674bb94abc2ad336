"""The same speech through every reader gives the same data."""

import logging

import pytest
import soundfile

from espnet2_lamer.data.audio import read_16k
from espnet2_lamer.data.manifest import prepare_manifest
from espnet2_lamer.data.segments import read_wavs
from espnet2_lamer.data.sets import read_if_there
from espnet2_lamer.data.sources.source import parse_sources
from tests.source_forms import FORMS, random_corpus, sound

TABLES = ("text", "utt2spk", "utt2lang", "utt2source")


def found(data):
    """Everything that a folder of sets says, ids aside, with the sound itself."""
    rows = []
    for folder in sorted(path.parent for path in data.glob("*/wav.scp")):
        tables = {name: read_if_there(folder / name) for name in TABLES}
        for utt, path in read_wavs(folder).items():
            said = [tables[name].get(utt, "") for name in TABLES]
            said = ["" if value == utt else value for value in said]
            rows.append((folder.name, *said, read_16k(path).tobytes()))
    return sorted(rows)


def expected(corpus, root):
    """The same of the corpus itself."""
    rows = []
    for number, one in enumerate(corpus):
        path = root / f"{number}.wav"
        soundfile.write(path, sound(one), 8000, "PCM_16")
        text = " ".join(one.text.split())
        speaker = one.speaker.replace(" ", "_")
        name = f"{one.split}_{one.lang}"
        samples = read_16k(str(path)).tobytes()
        rows.append((name, text, speaker, one.lang, one.source, samples))
    return sorted(rows)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("seed", [1, 2])
def test_every_form_gives_what_the_corpus_holds(form, seed, tmp_path):
    corpus = random_corpus(tmp_path, seed)
    prepare_manifest(FORMS[form](corpus, tmp_path), tmp_path / "data")
    (tmp_path / "apart").mkdir()
    assert found(tmp_path / "data") == expected(corpus, tmp_path / "apart")


def test_audio_of_archives_is_written_once_in_many_folders(tmp_path):
    corpus = random_corpus(tmp_path, 3)
    shards = FORMS["webdataset"](corpus, tmp_path)
    prepare_manifest(shards, tmp_path / "data")
    files = sorted(tmp_path.glob("data/audio/*/??/*.wav"))
    assert len(files) == len(corpus) and len({f.parent for f in files}) > 1
    before = [f.stat().st_ino for f in files]
    files[0].unlink()
    files[1].write_bytes(b"cut short")
    prepare_manifest(shards, tmp_path / "data")
    after = [f.stat().st_ino for f in files]
    assert after[2:] == before[2:] and after[1] != before[1]
    # Other archives: nothing of the old ones stays.
    few = [one for one in corpus if one.split == "train"]
    for path in (tmp_path / "shards").iterdir():
        path.unlink()
    FORMS["webdataset"](few, tmp_path)
    prepare_manifest(shards, tmp_path / "data")
    assert len([*tmp_path.glob("data/audio/*/??/*.wav")]) == len(few)


def test_audio_of_languages_that_are_not_asked_for_stays_in_the_archive(tmp_path):
    corpus = random_corpus(tmp_path, 4)
    for form in ("webdataset", "parquet"):
        data = tmp_path / f"data {form}"
        stats = prepare_manifest(FORMS[form](corpus, tmp_path), data, ["qaa"])
        asked = [one for one in corpus if one.lang == "qaa"]
        assert len([*data.glob("audio/*/??/*.wav")]) == len(asked) == stats["used"]


def test_several_sources_are_joined_and_named(tmp_path, caplog):
    caplog.set_level(logging.INFO)
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
    first, second = (random_corpus(tmp_path / n, 5) for n in ("one", "two"))
    kaldi = FORMS["kaldi"](first, tmp_path / "one")
    cuts = FORMS["lhotse"](second, tmp_path / "two")
    text = f"{kaldi} {cuts},prefix=two,source=radio"
    stats = prepare_manifest(text, tmp_path / "data")
    assert stats["used"] == len(first) + len(second)
    assert stats["read_as"] == {kaldi: "kaldi", cuts: "lhotse"}
    assert set(stats["sources"]) == {"web", "tv", "radio"}
    assert f"{kaldi}: read as kaldi" in caplog.text
    wavs = read_wavs(tmp_path / "data/train_deu")
    assert any(utt.startswith("two_u") for utt in wavs)


def test_a_language_that_is_all_called_train_is_divided(tmp_path):
    corpus = random_corpus(tmp_path, 6)
    for one in corpus:
        one.split = "train"
    source = FORMS["kaldi"](corpus, tmp_path)
    sets = prepare_manifest(source, tmp_path / "data")["sets"]
    assert {"dev_deu", "test_deu", "train_deu"} <= set(sets)
    sets = prepare_manifest(f"{source},split=train", tmp_path / "data")["sets"]
    assert set(sets) == {"train_deu", "train_qaa"}


def test_audio_of_one_language_may_lie_in_one_folder(tmp_path):
    corpus = random_corpus(tmp_path, 7)
    stats = prepare_manifest(f"folder:{tmp_path}/audio,lang=qaa", tmp_path / "data")
    assert stats["used"] == len({one.audio for one in corpus})
    assert stats["langs"] == ["qaa"]


@pytest.mark.parametrize(
    "line, path",
    [
        ("flac -c -d -s {0} |", "a.flac"),
        ("flac -cds '{0}' |", "a.flac"),
        ("cat {0} |", "a.flac"),
        ("{0}", "a.flac"),
        ("wav/a.flac", "a.flac"),
    ],
)
def test_decoders_that_change_nothing_stand_for_their_file(line, path, tmp_path):
    # Kaldi's recipes stand two folders above their data folders.
    folder = tmp_path / "data" / "train"
    folder.mkdir(parents=True)
    (tmp_path / "wav").mkdir()
    (tmp_path / "wav" / path).touch()
    value = line.format(tmp_path / "wav" / path)
    (folder / "wav.scp").write_text(f"a {value}\n")
    prepare_manifest(f"{folder},lang=deu", tmp_path / "out")
    (found,) = {*read_wavs(next(tmp_path.glob("out/*_deu"))).values()}
    assert found == str(tmp_path / "wav" / path)


def test_kinds_are_found_out(tmp_path):
    corpus = random_corpus(tmp_path, 8)
    kinds = {
        form: parse_sources(write(corpus, tmp_path))[0].kind
        for form, write in FORMS.items()
    }
    assert kinds == {
        "tsv": "tsv",
        "kaldi": "kaldi",
        "saved dataset": "datasets",
        "parquet": "datasets",
        "lhotse": "lhotse",
        "webdataset": "webdataset",
    }
