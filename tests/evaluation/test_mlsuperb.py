"""ML-SUPERB's own data: a tiny tree of its layout."""

import json

import numpy as np
import pytest
import soundfile

from espnet2_lamer.errors import RecipeError
from espnet2_lamer.evaluation import mlsuperb
from espnet2_lamer.evaluation.mlsuperb import (
    DATASETS,
    FEW_SHOT,
    MONOLINGUAL,
    few_shot_utterances,
    other_units,
    prepare_mlsuperb,
    scan_tree,
)
from espnet2_lamer.evaluation.text_units import official_text
from espnet2_lamer.evaluation.tokens import read_targets
from espnet2_lamer.fileio.datadir import read_table

LISTS = ("10min_train", "1h_train", "10min_dev", "10min_test")


def write_pair(root, dataset, lang, texts, seconds=1.0, rate=16000):
    """Write ``<dataset>/<lang>`` with every text in every list."""
    folder = root / dataset / lang
    (folder / "wav").mkdir(parents=True)
    prefix = {"commonvoice": "cv"}.get(dataset, dataset)
    for kind in LISTS:
        lines = []
        for number, text in enumerate(texts):
            utt = f"{prefix}_{lang}_{LISTS.index(kind)}{number:05d}"
            noise = np.random.default_rng(number).standard_normal(int(seconds * rate))
            soundfile.write(folder / "wav" / f"{utt}.wav", 0.1 * noise, rate)
            lines.append(f"{utt}\t-\t{text}\n")
        (folder / f"transcript_{kind}.txt").write_text("".join(lines), encoding="utf-8")
    return folder


@pytest.fixture
def tree(tmp_path):
    root = tmp_path / "mlsuperb"
    write_pair(root, "mls", "eng", ["it's [noise] Fine.", "yes"], rate=44100)
    write_pair(root, "fleurs", "cmn", ["你好，李老师。"])
    write_pair(root, "commonvoice", "yue", ["佢哋"])
    return root


def prepare(tree, tmp_path, langs=("eng", "cmn"), budgets=("10min", "1h"), **options):
    units = {"eng": "char", "cmn": "pinyin", "yue": "jyutping"}
    return prepare_mlsuperb(
        tree, tmp_path / "data", tmp_path / "dump", langs, units, budgets, **options
    )


def test_every_list_becomes_a_set_of_plain_16_khz_files(tree, tmp_path):
    prepare(tree, tmp_path)
    raw = tmp_path / "dump/raw"
    names = {path.name for path in raw.iterdir() if path.is_dir()} - {"audio"}
    assert names == {
        f"mlsuperb_{pair}_{part}"
        for pair in ("mls_eng", "fleurs_cmn")
        for part in ("train_10min", "train_1h", "dev", "test")
    }
    for name in names:
        for path in read_table(raw / name / "wav.scp").values():
            info = soundfile.info(path)  # a pipe would be no file
            assert (info.samplerate, info.channels) == (16000, 1)
    # 1h training has the ten-minute dev and test lists.
    dev = read_table(raw / "mlsuperb_mls_eng_dev/wav.scp")
    assert list(dev) == ["mls_eng_200000", "mls_eng_200001"]
    record = json.loads((raw / "mlsuperb_fleurs_cmn_train_1h/set.json").read_text())
    assert record["corpus"] == "fleurs" and record["budget"] == "1h"
    assert (record["unit"], record["normalisation"]) == ("pinyin", "official")
    assert (record["utterances"], record["seconds"]) == (1, 1.0)


def test_the_text_is_that_of_the_official_scripts(tree, tmp_path):
    prepare(tree, tmp_path)
    raw = tmp_path / "dump/raw"
    mono = read_table(raw / "mlsuperb_mls_eng_test/text")["mls_eng_300000"]
    multi = read_table(raw / "mlsuperb_mls_eng_test/text.char")["mls_eng_300000"]
    # Only the multilingual script takes brackets for a comment.
    assert (mono, multi) == ("ITS NOISE FINE", "ITS FINE")
    pinyin = read_table(raw / "mlsuperb_fleurs_cmn_test/text")["fleurs_cmn_300000"]
    assert [token for token in pinyin.split() if token.isalnum()] == (
        "n i3 h ao3 l i3 l ao3 sh i1".split()
    )
    # Punctuation outside ASCII stays, as it does there.
    multi = read_table(raw / "mlsuperb_fleurs_cmn_test/text.char")
    assert multi["fleurs_cmn_300000"] == "你好，李老师。"


@pytest.mark.parametrize(
    ("text", "mono", "multi"),
    [
        ("Don't stop!", "DONT STOP", "DONT STOP"),
        ("a [b] c [d] e", "A B C D E", "A E"),  # from the first bracket to the last
        ("a [b (c) d] e", "A B C D E", "A B C D E"),
        ("straße – «ja»", "STRASSE – «JA»", "STRASSE – «JA»"),
    ],
)
def test_official_normalisation(text, mono, multi):
    """Expected: the two scripts' process_text, white space collapsed."""
    assert official_text(text) == mono
    assert official_text(text, brackets=True) == multi


def test_a_head_of_one_language_reads_the_text_of_the_monolingual_script(
    tree, tmp_path
):
    prepare(tree, tmp_path)
    directory = tmp_path / "dump/raw/mlsuperb_mls_eng_test"
    found = [
        read_targets(directory, "text", unit, alone=alone)["mls_eng_300000"]
        for unit, alone in (("char", True), ("char", False), ("bpe", True))
    ]
    # The set's own unit is char: in another it has the plain text alone.
    assert found == ["ITS NOISE FINE", "ITS FINE", "ITS FINE"]


def test_text_normalisation_is_an_option_here_too(tree, tmp_path):
    prepare(tree, tmp_path, text_norm="unicode")
    raw = tmp_path / "dump/raw"
    text = read_table(raw / "mlsuperb_fleurs_cmn_test/text.char")["fleurs_cmn_300000"]
    assert text == "你好李老师"
    record = json.loads((raw / "mlsuperb_fleurs_cmn_test/set.json").read_text())
    assert record["normalisation"] == "unicode"


def test_cantonese_is_in_characters_unless_a_unit_is_named(tree, tmp_path):
    where = tmp_path / "data", tmp_path / "dump"
    prepare_mlsuperb(tree, *where, ["yue", "cmn"], {}, ["10min"])
    raw = tmp_path / "dump/raw"
    text = read_table(raw / "mlsuperb_commonvoice_yue_test/text")
    assert text == {"cv_yue_300000": "佢哋"}
    record = json.loads((raw / "mlsuperb_fleurs_cmn_test/set.json").read_text())
    assert record["unit"] == "pinyin"


def test_chosen_data_sets_come_in_the_order_of_the_choice(tmp_path):
    root = tmp_path / "tree"
    for dataset in ("commonvoice", "fleurs", "mls"):
        for lang in ("cmn", "eng"):
            write_pair(root, dataset, lang, ["a"])
    write_pair(root, "mls", "deu", ["a"])
    found = scan_tree(root, ["eng", "cmn"], ["fleurs", "commonvoice"])
    pairs = [(d, x) for d in ("fleurs", "commonvoice") for x in ("eng", "cmn")]
    assert list(found) == pairs
    assert all(found[d, x] == root / d / x for d, x in pairs)
    # Of all languages those that are there; a named one must be.
    assert len(scan_tree(root, ["all"], ["fleurs", "mls"])) == 5
    message = "--eval_corpora: .*fleurs has no deu, which is in mls"
    with pytest.raises(RecipeError, match=message):
        scan_tree(root, ["eng", "deu"], ["fleurs", "mls"])


def test_the_shares_of_chosen_data_sets_make_one_budget(tmp_path, monkeypatch):
    # Four seconds for two sets: two of each.
    monkeypatch.setattr(mlsuperb, "BUDGETS", {"10min": 4 / 60})
    root = tmp_path / "tree"
    pairs = [("commonvoice", "eng"), ("fleurs", "eng")]
    for dataset, lang in pairs:
        write_pair(root, dataset, lang, ["a"] * 5)
    where = root, tmp_path, ("eng",), ["10min"]
    prepare(*where, datasets=["commonvoice", "fleurs"])
    raw = tmp_path / "dump/raw"
    drawn = {}
    for dataset, lang in pairs:
        name = f"mlsuperb_{dataset}_{lang}_train_10min"
        whole = read_table(raw / name / "wav.scp")
        share = read_table(raw / f"{name}_total" / "wav.scp")
        assert share.items() < whole.items() and len(share) == 2
        drawn[name] = share
    assert not list(raw.glob("*dev_total"))
    prepare(*where, datasets=["commonvoice", "fleurs"], seed=1)
    again = {name: read_table(raw / f"{name}_total" / "wav.scp") for name in drawn}
    assert again != drawn


def test_units_that_are_not_the_benchmarks_are_named():
    assert other_units({"cmn": "pinyin", "jpn": "phone"}) == ""
    assert other_units({}) == ("jpn counts char, phone there (--units jpn=phone)")
    assert "swe counts word, char there" in other_units({"swe": "word"})


def test_test_sets_keep_what_training_drops(tree, tmp_path):
    folder = tree / "mls/eng/wav"
    for kind in (0, 3):
        soundfile.write(folder / f"mls_eng_{kind}00001.wav", np.ones(3200 * 101), 16000)
    long = np.random.default_rng(0).standard_normal(16000 * 21) * 0.1
    for kind in (0, 3):
        soundfile.write(folder / f"mls_eng_{kind}00001.wav", long, 16000)
    report = prepare(tree, tmp_path)["sets"]
    assert report["mlsuperb_mls_eng_train_10min"]["utterances"] == 1
    assert report["mlsuperb_mls_eng_train_10min"]["dropped_long"] == 1
    assert report["mlsuperb_mls_eng_test"]["utterances"] == 2


def test_files_without_samples_or_words_are_left_out_and_counted(tree, tmp_path):
    soundfile.write(tree / "mls/eng/wav/mls_eng_200000.wav", np.zeros(0), 16000)
    path = tree / "mls/eng/transcript_10min_dev.txt"
    wav = tree / "mls/eng/wav/mls_eng_200009.wav"
    wav.write_bytes((tree / "mls/eng/wav/mls_eng_200001.wav").read_bytes())
    path.write_text(path.read_text() + "mls_eng_200009 - ...\n")
    counts = prepare(tree, tmp_path)["sets"]["mlsuperb_mls_eng_dev"]
    assert (counts["utterances"], counts["no_samples"], counts["no_text"]) == (1, 1, 1)


def test_a_reserved_language_has_its_five_training_utterances_apart(tmp_path):
    root = tmp_path / "tree"
    folder = write_pair(root, "commonvoice", "epo", ["unu", "du"])
    lines = (folder / "transcript_10min_train.txt").read_text()
    for utt in ("cv_epo_000006", "cv_epo_000039"):
        (folder / "wav" / f"{utt}.wav").write_bytes(
            (folder / "wav" / "cv_epo_000000.wav").read_bytes()
        )
        lines += f"{utt} - tri\n"
    (folder / "transcript_10min_train.txt").write_text(lines)
    prepare(root, tmp_path, ["all"], ["10min"])
    raw = tmp_path / "dump/raw"
    few = raw / "mlsuperb_commonvoice_epo_train_few_10min"
    assert list(read_table(few / "wav.scp")) == ["cv_epo_000006", "cv_epo_000039"]
    assert json.loads((few / "set.json").read_text())["few_shot"]
    assert len(read_table(raw / "mlsuperb_commonvoice_epo_train_10min/wav.scp")) == 4
    folder.joinpath("transcript_10min_train.txt").write_text(
        lines.split("cv_epo_00000")[0] + "cv_epo_000000 - u\n"
    )
    with pytest.raises(RecipeError, match="found none of cv_epo_000006"):
        prepare(root, tmp_path, ["all"], ["10min"])


def test_the_protocols_tables_are_whole():
    assert len(DATASETS) == 14 and len(MONOLINGUAL) == 13 and len(FEW_SHOT) == 20
    assert {len(utts) for utts in FEW_SHOT.values()} == {5}
    assert {dataset for _, dataset in MONOLINGUAL.values()} <= set(DATASETS)
    assert few_shot_utterances("commonvoice", "lit") == {
        "cv_lit_000026",
        "cv_lit_000105",
    }
    assert len(few_shot_utterances("googlei18n_asr", "sun")) == 5
    # Every listed utterance belongs to one of the data sets.
    for lang, utts in FEW_SHOT.items():
        found = [u for d in DATASETS for u in few_shot_utterances(d, lang)]
        assert sorted(found) == sorted(utts)


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda t: "mls_eng_000000\n", "expected an utterance id, a field"),
        (lambda t: "mls_eng_000000 -\n", "expected an utterance id, a field"),
        (lambda t: t + t, "'mls_eng_000000' occurs twice"),
        (lambda t: "mls_eng_999999 - yes\n", "mls_eng_999999.wav not found"),
        (lambda t: "../x - yes\n", "'../x' is no utterance id"),
        (lambda t: "mls_eng_000000 - ...\n", "no utterance with text and audio"),
    ],
)
def test_a_bad_transcript_is_named_and_nothing_is_written(
    tree, tmp_path, spoil, message
):
    path = tree / "mls/eng/transcript_10min_train.txt"
    path.write_text(spoil(path.read_text()))
    with pytest.raises(RecipeError, match=message):
        prepare(tree, tmp_path)
    raw = tmp_path / "dump/raw"
    assert not raw.exists() or {p.name for p in raw.iterdir()} <= {"audio"}


def test_a_missing_list_unknown_language_or_data_set_is_named(tree, tmp_path):
    with pytest.raises(RecipeError, match="--eval_langs: xyz is in no data set of"):
        scan_tree(tree, ["eng", "xyz"])
    (tree / "mls/eng/transcript_10min_dev.txt").unlink()
    with pytest.raises(RecipeError, match="transcript_10min_dev.txt: file not found"):
        prepare(tree, tmp_path)
    write_pair(tree, "librispeech", "eng", ["one"])
    with pytest.raises(RecipeError, match="librispeech: unknown data set"):
        scan_tree(tree)
    with pytest.raises(RecipeError, match="found nothing, expected folders such as"):
        scan_tree(tmp_path / "empty")
    with pytest.raises(RecipeError, match="MLSUPERB is not set"):
        scan_tree("")
