"""Curves of forgetting: a row per validation, language and layer, and a picture."""

import csv
import json

import pytest

from espnet2_lamer.analysis.plots import write_forgetting_curves


def write_lines(path, phones):
    probe = {"eng": [0.5, 0.625]} if phones else {}
    lines = [
        {
            "epoch": epoch,
            "updates": 10 * epoch,
            "layers": [6, 22],
            "cka": {"cmn": [0.75, 0.5], "eng": [1.0, 0.875]},
            "probe": probe,
            "probe_of_base": probe,
        }
        for epoch in (1, 2)
    ]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))


@pytest.mark.parametrize("phones", [True, False])
def test_every_validation_language_and_layer_has_a_row(tmp_path, phones):
    write_lines(tmp_path / "forgetting.jsonl", phones)
    output = tmp_path / "analysis" / "forgetting_curves.csv"
    write_forgetting_curves(tmp_path / "forgetting.jsonl", output, ["eng", "cmn"])
    rows = list(csv.DictReader(output.open()))
    assert [(r["updates"], r["language"], r["layer"]) for r in rows] == [
        (updates, lang, layer)
        for updates in ("10", "20")
        for lang in ("cmn", "eng")
        for layer in ("6", "22")
    ]
    assert [row["cka"] for row in rows[:4]] == ["0.75", "0.5", "1", "0.875"]
    expected = ["", "", "0.5", "0.625"] if phones else [""] * 4
    assert [row["probe"] for row in rows[:4]] == expected
    picture = output.with_suffix(".png").read_bytes()
    assert picture.startswith(b"\x89PNG") and len(picture) > 5000
