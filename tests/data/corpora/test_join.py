"""Several corpora become the sets that the later stages read."""

import json

import pytest

from espnet2_lamer.data.corpora.prepare import join_corpora, prepare
from espnet2_lamer.data.manifest import prepare_manifest
from espnet2_lamer.errors import RecipeError
from espnet2_lamer.evaluation.benchmark_sets import prepare_asr_data
from espnet2_lamer.fileio.datadir import read_table
from tests.corpus_trees import (
    cv_row,
    write_commonvoice,
    write_lines,
    write_noise,
    write_paper_corpora,
    write_thchs30,
)

LANGS = ["eng", "cmn", "yue"]
#: Corpus to its folder inside that of ``write_paper_corpora``.
FOLDERS = {
    "commonvoice": "",
    "thchs30": "",
    "aishell1": "",
    "aishell3": "aishell3",
    "fleurs": "fleurs",
}


def _prepare_all(root):
    for corpus, folder in FOLDERS.items():
        prepare(corpus, root / folder, root / "data", LANGS)


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    """A folder ``data`` with all corpora prepared, and joined."""
    root = tmp_path_factory.mktemp("corpora")
    write_paper_corpora(root, seconds=0.5)
    _prepare_all(root)
    join_corpora(list(FOLDERS), root / "data", LANGS)
    return root / "data"


def _ids(folder):
    return list(read_table(folder / "wav.scp"))


def test_pretraining_joins_the_corpora_and_says_where_each_clip_is_from(prepared):
    assert read_table(prepared / "train_cmn/utt2source") == {
        "aishell1_BAC009S0002W0122": "aishell1",
        "aishell1_BAC009S0002W0123": "aishell1",
        "aishell1_BAC009S0003W0121": "aishell1",
        "aishell3_SSB00050001": "aishell3",
        "aishell3_SSB00050002": "aishell3",
        "aishell3_SSB00090001": "aishell3",
        "commonvoice_common_voice_zh-CN_2": "commonvoice-zh-CN",
        "commonvoice_common_voice_zh-CN_3": "commonvoice-zh-CN",
        "thchs30_A11_0": "thchs30",
        "thchs30_A11_1": "thchs30",
    }
    report = json.loads((prepared / "corpora.json").read_text())
    assert report["sets"]["train_yue"]["sources"] == {
        "commonvoice-yue": 2,
        "commonvoice-zh-HK": 2,
    }


def test_joined_tables_agree_with_those_of_the_corpora(prepared):
    parts = sorted((prepared / "pretrain").glob("*/train_cmn"))
    assert len(parts) == 4
    for name in ("wav.scp", "text", "utt2spk", "utt2lang", "utt2source"):
        joined = (prepared / "train_cmn" / name).read_text().splitlines()
        single = [line for p in parts for line in (p / name).read_text().splitlines()]
        assert joined == sorted(single, key=str.encode)
    utts = [
        utt
        for line in (prepared / "train_cmn/spk2utt").read_text().splitlines()
        for utt in line.split()[1:]
    ]
    assert sorted(utts) == _ids(prepared / "train_cmn")


def test_out_of_domain_speech_is_in_no_set_of_pretraining(prepared):
    for split in ("train", "dev", "test"):
        for lang in LANGS:
            ids = _ids(prepared / f"{split}_{lang}")
            assert ids and not any(utt.startswith("fleurs") for utt in ids)
    assert _ids(prepared / "eval/fleurs/test_eng") == ["fleurs_en_us_10002"]


def test_dev_and_test_are_commonvoices(prepared):
    assert _ids(prepared / "dev_cmn") == ["commonvoice_common_voice_zh-CN_0"]
    assert _ids(prepared / "test_yue") == [
        "commonvoice_common_voice_yue_1",
        "commonvoice_common_voice_zh-HK_1",
    ]


def test_transcripts_are_fit_for_scoring(prepared, tmp_path):
    units = {"eng": "char", "cmn": "pinyin", "yue": "jyutping"}
    report = prepare_asr_data(prepared, tmp_path, LANGS, units)
    assert report["languages"]["cmn"]["test"]["utterances"] == 1
    (text,) = read_table(tmp_path / "raw/asr_cmn_test/text").values()
    assert text.startswith("zh e4 sh i4 d i4 er4")


def test_a_language_without_a_dev_set_holds_some_of_train_out(tmp_path):
    rows = [cv_row("en", n) for n in range(4)]
    write_commonvoice(tmp_path, "en", rows, dev=rows[:1])
    for number in range(80):
        write_noise(tmp_path / f"AISHELL-3/train/wav/SSB0005/SSB0005{number:04d}.wav")
    for number in range(20):
        write_noise(tmp_path / f"data_thchs30/train/A11_{number}.wav")
        write_lines(tmp_path / f"data_thchs30/train/A11_{number}.wav.trn", "好")
    write_lines(tmp_path / "AISHELL-3/train/content.txt")
    out = tmp_path / "data"
    prepare("commonvoice", tmp_path, out, ["eng"])
    prepare("thchs30", tmp_path, out, ["cmn"])
    prepare("aishell3", tmp_path, out, ["cmn"])
    corpora = ["commonvoice", "thchs30", "aishell3"]
    report = join_corpora(corpora, out, ["eng", "cmn"], seed=3)
    # As mHuBERT-147: 5 per source; no more than a tenth of a small one.
    assert report["sets"]["dev_cmn"] == {
        "utterances": 7,
        "held_out_of_train": 7,
        "sources": {"aishell3": 5, "thchs30": 2},
    }
    assert report["sets"]["train_cmn"]["utterances"] == 93
    dev, train = _ids(out / "dev_cmn"), _ids(out / "train_cmn")
    assert not set(dev) & set(train)
    assert len(read_table(out / "dev_cmn/utt2spk")) == 7
    assert report["sets"]["dev_eng"]["held_out_of_train"] == 0
    assert not (out / "test_cmn").exists()
    join_corpora(corpora, out, ["eng", "cmn"], seed=3)
    assert _ids(out / "dev_cmn") == dev
    join_corpora(corpora, out, ["eng", "cmn"], seed=4)
    assert _ids(out / "dev_cmn") != dev


def test_manifests_select_and_other_corpora_evaluate(tmp_path):
    rows = [cv_row("yue", n) for n in range(5)]
    folder = write_commonvoice(tmp_path, "yue", rows, dev=rows[:1], test=rows[1:2])
    write_commonvoice(tmp_path, "zh-HK", [])
    listed = [f"common_voice_yue_{n}.wav\t9000\tyue\tCV" for n in (2, 4)]
    manifest = write_lines(tmp_path / "CV.tsv", folder / "clips", *listed)
    out = tmp_path / "data"
    prepare("commonvoice", tmp_path, out, ["yue"])
    prepare("mhubert147", manifest, out, ["yue"])
    join_corpora(["commonvoice", "mhubert147"], out, ["yue"])
    assert _ids(out / "train_yue") == [
        "mhubert147_cv_common_voice_yue_2",
        "mhubert147_cv_common_voice_yue_4",
    ]
    assert _ids(out / "dev_yue") == ["commonvoice_common_voice_yue_0"]
    assert _ids(out / "test_yue") == ["commonvoice_common_voice_yue_1"]


def test_a_language_in_no_corpus_is_named_and_nothing_is_written(tmp_path):
    write_thchs30(tmp_path)
    out = tmp_path / "data"
    prepare("thchs30", tmp_path, out, ["cmn", "yue"])
    with pytest.raises(
        RecipeError, match="--corpus thchs30: no pretraining speech in l"
    ):
        join_corpora(["thchs30"], out, ["cmn", "yue"])
    assert not (out / "train_cmn").exists()


def test_sets_of_corpora_that_are_no_longer_asked_for_go(tmp_path):
    write_paper_corpora(tmp_path, seconds=0.2)
    out = tmp_path / "data"
    _prepare_all(tmp_path)
    join_corpora(list(FOLDERS), out, LANGS)
    own = out / "eval/mine"
    own.mkdir()
    join_corpora(["thchs30"], out, ["cmn"])
    assert not (out / "test_cmn").exists()
    assert {p.name for p in (out / "pretrain").iterdir()} == {"thchs30"}
    assert {p.name for p in (out / "eval").iterdir()} == {"mine"}
    assert all(u.startswith("thchs30") for u in _ids(out / "train_cmn"))
    # Another kind of corpus removes the rest, and nothing of the user's.
    wav = write_noise(tmp_path / "own/cmn/a.wav")
    prepare_manifest(wav.parents[1], out, ["cmn"])
    assert not (out / "pretrain/thchs30").exists() and own.is_dir()
