"""The paper's sets: CommonVoice and FLEURS in ML-SUPERB's sizes."""

import json

import pytest

from espnet2_lamer.errors import RecipeError
from espnet2_lamer.evaluation import paper_sets
from espnet2_lamer.evaluation.paper_sets import prepare_paper_sets
from espnet2_lamer.fileio.datadir import read_table, write_table

UNITS = {"eng": "char", "yue": "jyutping"}
TEXTS = {"eng": "Good day.", "yue": "你好。"}


@pytest.fixture
def corpora(tmp_path, make_set, monkeypatch):
    """Ten utterances of 1 s per list; ten minutes are six seconds, an hour 36."""
    monkeypatch.setattr(paper_sets, "BUDGETS", {"all": None, "10min": 0.05, "1h": 0.1})
    monkeypatch.setattr(paper_sets, "_HELD_OUT_MINUTES", 0.05)
    for corpus in ("commonvoice", "fleurs"):
        for lang in UNITS:
            for split in ("train", "dev", "test"):
                texts = [TEXTS[lang]] * 10
                made = make_set(f"{corpus}_{split}", lang, [1.0] * 10, texts)
                target = tmp_path / "data/eval" / corpus / f"{split}_{lang}"
                target.parent.mkdir(parents=True, exist_ok=True)
                made.rename(target)
    return tmp_path


def prepare(root, langs=("eng", "yue"), budgets=("1h", "10min"), **options):
    return prepare_paper_sets(
        root / "data", root / "dump", langs, UNITS, budgets, **options
    )


def ids(root, name):
    return set(read_table(root / "dump/raw" / name / "wav.scp"))


def test_sets_have_their_sizes_and_shorter_ones_are_parts_of_longer(corpora):
    report = prepare(corpora)["sets"]
    # 2 corpora x 2 languages x (1h, 10min, both in total, dev, test).
    assert len(report) == 4 * 6
    for corpus in ("commonvoice", "fleurs"):
        for lang in UNITS:
            name = f"paper_{corpus}_{lang}"
            seconds = {
                part: report[f"{name}_{part}"]["seconds"]
                for part in ("train_1h", "train_10min", "train_1h_total", "dev", "test")
            }
            assert seconds == {
                "train_1h": 6.0,
                "train_10min": 3.0,
                "train_1h_total": 2.0,  # 6 s over four sets, in whole utterances
                "dev": 3.0,
                "test": 3.0,
            }
            total = ids(corpora, f"{name}_train_1h_total")
            ten = ids(corpora, f"{name}_train_10min")
            assert total < ten < ids(corpora, f"{name}_train_1h")
            assert ids(corpora, f"{name}_dev") <= {
                f"{lang}_{corpus}_dev_{n:03d}" for n in range(10)
            }
    raw = corpora / "dump/raw"
    text = read_table(raw / "paper_fleurs_yue_test/text").popitem()[1]
    assert text == "n ei5 h ou2"
    assert json.loads((raw / "paper_fleurs_yue_test/set.json").read_text())["seed"] == 0


def test_corpora_can_be_chosen_and_texts_normalised_as_officially(corpora):
    report = prepare(corpora, corpora=["fleurs"], text_norm="official")["sets"]
    assert {name.split("_")[1] for name in report} == {"fleurs"}
    assert {record["normalisation"] for record in report.values()} == {"official"}
    texts = read_table(corpora / "dump/raw/paper_fleurs_yue_test/text.char")
    assert {*texts.values()} == {"你好。"}
    # Shares are those of the chosen sets: 6 s over two.
    assert report["paper_fleurs_yue_train_1h_total"]["seconds"] == 3.0


def test_the_seed_draws_and_lists_bring_a_draw_back(corpora, tmp_path):
    prepare(corpora, seed=0)
    name = "paper_commonvoice_eng_train_1h"
    first = ids(corpora, name)
    listed = (corpora / "dump/raw/lists" / f"{name}.txt").read_text().split()
    assert set(listed) == first
    (corpora / "dump/raw/lists").rename(tmp_path / "mine")
    prepare(corpora, seed=1)
    assert ids(corpora, name) != first
    prepare(corpora, seed=1, lists_dir=tmp_path / "mine")
    assert ids(corpora, name) == first
    # The draw of one language does not depend on the others.
    prepare(corpora, langs=("eng",), seed=0)
    assert ids(corpora, name) == first


def test_held_out_speech_that_pretraining_uses_is_refused(corpora):
    source = corpora / "data/eval/commonvoice/test_eng"
    audio = read_table(source / "wav.scp")
    write_table(
        corpora / "data/train_eng/wav.scp", {"other_name": audio.popitem()[1]} | audio
    )
    with pytest.raises(RecipeError, match=r"utterances are in train_eng"):
        prepare(corpora)
    assert not (corpora / "dump/raw/paper.json").exists()
    assert not list((corpora / "dump/raw").glob("paper_*"))


def test_missing_sets_texts_and_lists_of_other_data_are_named(corpora, tmp_path):
    lists = tmp_path / "lists"
    lists.mkdir()
    (lists / "paper_fleurs_eng_dev.txt").write_text("nobody\n")
    with pytest.raises(RecipeError, match="paper_fleurs_eng_dev.txt: nobody is not in"):
        prepare(corpora, lists_dir=lists)
    (corpora / "data/eval/fleurs/dev_eng/text").unlink()
    with pytest.raises(RecipeError, match="fleurs/dev_eng/text: file not found"):
        prepare(corpora)
    assert not list((corpora / "dump/raw").glob("paper_*"))


def test_too_little_speech_is_taken_whole_and_said(corpora, monkeypatch, caplog):
    monkeypatch.setattr(paper_sets, "_HELD_OUT_MINUTES", 1.0)
    report = prepare(corpora)["sets"]
    assert report["paper_fleurs_eng_test"]["utterances"] == 10
    assert "0.2 min are all there is, 1 wanted" in caplog.text


def test_unusable_audio_is_left_out_and_listed_up_to_a_share(corpora):
    prepare(corpora, langs=["eng"])
    first, second, *_ = sorted(ids(corpora, "paper_fleurs_eng_train_1h"))
    wavs = read_table(corpora / "data/eval/fleurs/train_eng/wav.scp")

    def damage(utt):
        path = corpora / "audio" / f"{utt}.flac"
        assert str(path) == wavs[utt]
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])

    damage(first)
    with pytest.raises(RecipeError, match="1 of 6 audio files cannot be used"):
        prepare(corpora, langs=["eng"], max_bad_audio=0)
    prepare(corpora, langs=["eng"])
    assert len(ids(corpora, "paper_fleurs_eng_train_1h") - {first}) == 5
    damage(second)
    with pytest.raises(RecipeError, match="2 of 6 audio files cannot be used"):
        prepare(corpora, langs=["eng"])
    prepare(corpora, langs=["eng"], max_bad_audio=34)
    assert len(ids(corpora, "paper_fleurs_eng_train_1h")) == 4
    name = "skipped_audio_paper_fleurs_eng_train_1h.tsv"
    assert first in (corpora / "dump/raw" / name).read_text()
