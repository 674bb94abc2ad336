"""ML-SUPERB 2.0's data, in both forms: languages, dialects, sets."""

import json

import numpy as np
import pytest
import soundfile

from espnet2_lamer.errors import RecipeError
from espnet2_lamer.evaluation.mlsuperb2 import prepare_mlsuperb2
from espnet2_lamer.evaluation.mlsuperb2_tree import (
    official_language,
    open_tree,
    planned_languages,
)
from espnet2_lamer.fileio.datadir import read_table
from tests.mlsuperb2_tree import sound, utterances, write_folders, write_parquet


@pytest.fixture(params=["folders", "parquet"])
def tree(request, tmp_path):
    write = {"folders": write_folders, "parquet": write_parquet}[request.param]
    return write(tmp_path / "tree", utterances(train=2, dev=1))


def prepare(tree, tmp_path, langs=("all",)):
    return prepare_mlsuperb2(tree, tmp_path / "data", tmp_path / "dump", langs)


def samples_of(directory):
    wavs = read_table(directory / "wav.scp")
    return {utt: soundfile.read(path) for utt, path in wavs.items()}


def test_each_language_and_split_becomes_a_set(tree, tmp_path):
    prepare(tree, tmp_path)
    raw = tmp_path / "dump/raw"
    names = {path.parent.name for path in raw.glob("*/set.json")}
    splits = ("train", "dev", "dev_dialect", "valid")
    assert names == {
        f"mlsuperb2_{x}_{s}" for x in ("eng", "cmn", "lug") for s in splits
    }
    for split, part in utterances(train=2, dev=1).items():
        for utt, lang, text, samples in part:
            new = {"lga": "lug"}.get(lang, lang)
            here = raw / f"mlsuperb2_{new}_{split}"
            assert read_table(here / "utt2lang")[utt] == new
            assert read_table(here / "text.char")[utt] == text
            found, rate = samples_of(here)[utt]
            assert rate == 16000 and len(found) == len(samples)
            assert np.abs(found - samples).max() < 2e-4
    record = json.loads((raw / "mlsuperb2_lug_train/set.json").read_text())
    assert record["benchmark"] == "mlsuperb2"
    assert record["normalisation"] == "as written"


def test_languages_can_be_chosen_and_unknown_ones_are_named(tree, tmp_path):
    assert planned_languages(tree, ["eng", "lug"]) == {
        split: ["eng", "lug"] for split in ("train", "dev", "dev_dialect")
    }
    with pytest.raises(RecipeError, match="deu is not in the training set.*cmn, eng"):
        planned_languages(tree, ["deu"])
    # Its code before 2026 is no language of it any more.
    with pytest.raises(RecipeError, match="lga is not in"):
        planned_languages(tree, ["lga"])
    prepare(tree, tmp_path, ["eng"])
    names = {path.parent.name for path in (tmp_path / "dump/raw").glob("*/set.json")}
    assert names and all("_eng_" in name for name in names)


@pytest.mark.parametrize(
    ("split", "utt", "lang", "expected"),
    [
        ("train", "cv_x", "eng", "eng"),
        ("train", "cv_x", "org_jpn", "jpn"),
        ("dev", "cv_x", "lga", "lug"),
        ("dev", "fleurs_x", "ory", "ori"),
        ("dev_dialect", "x", "arb", "ara"),
        ("train", "cv_x", "nno", ""),
        ("dev", "cv_x", "nor", ""),
        ("dev_dialect", "NST_x", "nob", "nob"),
        ("dev_dialect", "ms_speech_tel_000001", "hin", "tel"),
        ("dev_dialect", "ms_speech_other_1", "hin", "hin"),
        ("train", "ms_speech_tel_000001", "hin", "hin"),
    ],
)
def test_codes_are_those_of_the_recipe_of_2026(split, utt, lang, expected):
    """Expected: espnet egs2/ml_superb2/asr1/local/download_refined.py, by hand."""
    assert official_language(split, utt, lang) == expected


def test_dropped_languages_and_empty_texts_are_left_out_and_counted(tmp_path):
    rows = utterances(train=2, dev=2)
    rows["train"] += [("cv_nno_1", "nno", "A", sound("eng", "A", 1))]
    rows["dev"][0] = (*rows["dev"][0][:2], "  ", rows["dev"][0][3])
    report = prepare(write_folders(tmp_path / "tree", rows), tmp_path)
    assert report["dropped_languages"] == {"train": 1}
    assert report["sets"]["mlsuperb2_eng_dev"]["no_text"] == 1
    assert report["sets"]["mlsuperb2_eng_dev"]["utterances"] == 1
    assert not list((tmp_path / "dump/raw").glob("mlsuperb2_nno*"))


def test_long_speech_is_tested_but_neither_trains_nor_chooses(tmp_path):
    rows = utterances(train=2, dev=2)
    long = 0.1 * np.random.default_rng(0).standard_normal(16000 * 21)
    for split in ("train", "dev"):
        rows[split][0] = (*rows[split][0][:3], long)
    report = prepare(write_folders(tmp_path / "tree", rows), tmp_path)["sets"]
    assert report["mlsuperb2_eng_train"]["dropped_long"] == 1
    assert report["mlsuperb2_eng_dev"]["utterances"] == 2
    assert report["mlsuperb2_eng_valid"] == {"utterances": 1, "of": 2}
    raw = tmp_path / "dump/raw"
    kept = set(read_table(raw / "mlsuperb2_eng_valid/wav.scp"))
    assert kept == {rows["dev"][1][0]}


def test_own_tests_are_read_where_somebody_has_some(tmp_path):
    rows = utterances(train=2, dev=1)
    rows["test_dialect"] = [
        (f"t{utt}", *rest) for utt, *rest in rows["dev_dialect"] if rest[0] == "eng"
    ]
    root = write_folders(tmp_path / "tree", rows)
    assert [*open_tree(root).splits] == ["train", "dev", "dev_dialect", "test_dialect"]
    assert planned_languages(root, ["all"])["test_dialect"] == ["eng"]


def test_mistakes_are_named(tmp_path):
    with pytest.raises(RecipeError, match="MLSUPERB2 is not set"):
        open_tree("")
    (tmp_path / "wrong/mls").mkdir(parents=True)
    with pytest.raises(RecipeError, match=r"no train split.*found mls.*db\.sh"):
        open_tree(tmp_path / "wrong")
    root = write_folders(tmp_path / "tree", utterances(train=2, dev=1))
    text = root / "data/dev/text"
    good = text.read_text()
    for line, problem in (
        ("dev_eng_000000 no tag\n", "expected a language tag"),
        ("dev_eng_000000 [english] A\n", "'english', expected a code of three"),
        ("other [eng] A\n", "only in one of text and wav.scp"),
    ):
        text.write_text(line + "".join(good.splitlines(keepends=True)[1:]))
        with pytest.raises(RecipeError, match=problem):
            planned_languages(root, ["all"])
    text.write_text(good)
    assert planned_languages(root, ["eng"])["dev"] == ["eng"]


def test_a_damaged_shard_is_named(tmp_path):
    root = write_parquet(tmp_path / "tree", utterances(train=2, dev=1))
    shard = root / "data/dev-00001-of-00002.parquet"
    shard.write_bytes(shard.read_bytes()[:-200])
    with pytest.raises(RecipeError, match=r"dev-00001.*complete the download"):
        planned_languages(root, ["all"])


def test_a_text_of_several_lines_is_one(tmp_path):
    rows = utterances(train=2, dev=1)
    utt, lang, _, samples = rows["train"][0]
    rows["train"][0] = (utt, lang, " A\n B\tC ", samples)
    prepare(write_parquet(tmp_path / "tree", rows), tmp_path)
    texts = read_table(tmp_path / "dump/raw/mlsuperb2_eng_train/text.char")
    assert texts[utt] == "A B C"


def test_folders_of_audio_are_watched_and_parquet_is_its_own(tmp_path):
    rows = utterances(train=2, dev=1)
    folders = write_folders(tmp_path / "folders", rows)
    # Paths of wav.scp begin where ESPnet's recipe stands.
    assert open_tree(folders).audio_folders == [folders / "data/raw_audio"]
    assert open_tree(folders / "data").audio_folders == [folders / "data/raw_audio"]
    parquet = open_tree(write_parquet(tmp_path / "parquet", rows))
    assert parquet.audio_folders == []
    assert len(parquet.sources) == 6
