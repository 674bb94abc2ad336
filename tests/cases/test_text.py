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
