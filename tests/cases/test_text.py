"""Cases of text, scores and splits, where a folder of them is there (LAMER_CASES)."""

import json
import os
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
CASES = Path(os.environ.get("LAMER_CASES", ROOT.parent / "shared" / "cases"))
pytestmark = pytest.mark.skipif(not CASES.is_dir(), reason="no folder of cases here")


@pytest.mark.parametrize("name", ["nfd", "fullwidth", "format_chars"])
def test_forms_of_one_text_have_no_errors(name, tmp_path):
    from espnet2_lamer.bin.score import main

    here, out = CASES / f"score_{name}", tmp_path / "score.json"
    main([f"--ref={here}/ref", f"--hyp={here}/hyp", "--unit=char", f"--json={out}"])
    assert json.loads(out.read_text())["errors"] == 0


def test_a_file_that_is_not_utf8_is_named(tmp_path):
    from espnet2_lamer.errors import RecipeError
    from espnet2_lamer.evaluation.scoring import score_files

    here = CASES / "score_latin1"
    with pytest.raises(RecipeError, match="score_latin1/hyp:1: byte 7.*expected UTF-8"):
        score_files(here / "ref", here / "hyp", "char")


def test_simplified_cantonese_gets_readings_and_the_split_is_measured(tmp_path, caplog):
    from espnet2_lamer.data.manifest import prepare_manifest
    from espnet2_lamer.evaluation.benchmark_sets import prepare_asr_data
    from espnet2_lamer.evaluation.set_table import set_table
    from espnet2_lamer.fileio.datadir import read_table

    data, raw = tmp_path / "data", tmp_path / "dump/raw"
    stats = prepare_manifest(CASES / "yue_simplified_text/manifest.tsv", data)
    # Ten of the texts are in train, too, three of them in test.
    assert stats["test_in_train"]["yue"]["sentences"] == 100
    units = {"eng": "char", "yue": "jyutping"}
    prepare_asr_data(data, tmp_path / "dump", list(units), units)
    folders = [[raw / f"asr_yue_{split}"] for split in ("train", "test")]
    row = set_table({"yue": (*folders, "jyutping")}).rows["yue"]
    assert row["test tokens without a reading"].value == 0
    assert row["test sentences in training"].value == 100
    # The digits of one text have none.
    (token,) = (
        token
        for line in read_table(raw / "asr_yue_train/text").values()
        for token in line.split()
        if token == token.upper()
    )
    assert token == "20"
    assert "asr_yue_train" not in caplog.text or "e.g. 20:" in caplog.text
