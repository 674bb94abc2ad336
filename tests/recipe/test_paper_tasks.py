"""The paper's Table 1 on a tiny ML-SUPERB tree: one command, every system."""

import json
from pathlib import Path

import pytest
import yaml

from espnet2_lamer.recipe import upstreams
from espnet2_lamer.recipe.command import run_recipe
from espnet2_lamer.recipe.stages import ssl1
from tests.evaluation.test_mlsuperb import write_pair
from tests.recipe.test_paper_preset import _checkpoint, _shorter

ROOT = Path(__file__).parents[2]
RECIPE = ROOT / "egs2/lamer_ssl/ssl1"
TEXTS = {
    "eng": ["Good day to you.", "All of you, good day"],
    "cmn": ["你好，李老师。", "早上好"],
    "yue": ["佢哋好。", "早晨呀"],
}
CORPORA = ("commonvoice", "fleurs")
#: The rows of the paper's Table 1, and whether they are of HuBERT-Large's kind.
SYSTEMS = {
    "mhubert_147_iter1": False,
    "mhubert_147_iter2": False,
    "mhubert_147_iter3": False,
    "hubert_large": True,
    "hubert_lora": True,
    "lamer_ssl": True,
}
# 42 heads of two updates: two minutes on one core.
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    """Run stages 9 to 12 and return the directory of RESULTS.md, and exp."""
    root = tmp_path_factory.mktemp("paper_tasks")
    for lang, texts in TEXTS.items():
        for dataset in (*CORPORA, "mls"):
            write_pair(root / "tree", dataset, lang, texts)
    head = {"max_epoch": 1, "num_iters_per_epoch": 2, "accum_grad": 1, "num_workers": 0}
    for number, (name, large) in enumerate(SYSTEMS.items()):
        assert (ROOT / f"conf/upstreams/{name}.yaml").is_file()
        source = _checkpoint(root / name, 2 + number % 3, large)
        conf = {"source": str(source), "asr_layer": 2, "lid_layer": 1}
        path = root / "upstreams" / f"{name}.yaml"
        path.parent.mkdir(exist_ok=True)
        path.write_text(yaml.safe_dump(conf))
    options = {
        "preset": "paper",
        "benchmark": "mlsuperb",
        "eval_langs": "eng cmn yue",
        "eval_corpora": " ".join(CORPORA),
        "upstreams": " ".join(SYSTEMS),
        "baselines": "hubert_large",
        "stage": 9,
        "stop_stage": 12,
        "nj": 1,
        "asr_config": _shorter("train_asr_mlsuperb.yaml", root / "asr.yaml", **head),
        "lid_config": _shorter("train_lid_mlsuperb.yaml", root / "lid.yaml", **head),
        **{f"{name}dir": root / name for name in ("data", "dump", "exp")},
    }
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(RECIPE)
        patch.setenv("MLSUPERB", str(root / "tree"))
        patch.setattr(upstreams, "CONFIGS", root / "upstreams")
        run_recipe(ssl1, [f"--{name}={value}" for name, value in options.items()])
    return root / "exp/results_mlsuperb_commonvoice-fleurs", root / "exp"


def table_of(text, title):
    """Return a table of RESULTS.md as rows of cells."""
    section = text.partition(f"### {title}\n")[2].partition("\n### ")[0]
    lines = [line for line in section.splitlines() if line.startswith("|")]
    return [line.strip("|").split("|") for line in lines if "---" not in line]


def test_the_tables_have_the_papers_shape(results):
    text = (results[0] / "RESULTS.md").read_text(encoding="utf-8")
    titles = [f"Table 1: {name}, 1h" for name in (*CORPORA, "LID")]
    assert [t for t in text.splitlines() if t.startswith("### Table 1")] == [
        f"### {title}" for title in titles
    ]
    for title in titles:
        (_, *columns), *rows = table_of(text, title)
        assert columns == ["eng", "cmn", "yue", "avg"]
        assert [row[0] for row in rows] == list(SYSTEMS)
        for _, *cells in rows:
            figures = [float(cell.split()[0]) for cell in cells]
            assert figures[3] == pytest.approx(sum(figures[:3]) / 3, abs=0.11)
            if "LID" not in title:
                assert all("(sclite " in cell for cell in cells[:3])


def test_every_figure_is_of_a_head_of_its_own_tested_apart(results):
    directory, exp = results
    runs = [json.loads(path.read_text()) for path in exp.glob("*/run.json")]
    assert len(runs) == 7 * len(SYSTEMS)
    data = json.loads((directory / "results.json").read_text())
    asr = [f for f in data["figures"] if f["track"] == "asr"]
    assert {(f["label"], f["train"], f["unit"]) for f in asr} == {
        (f"{lang}_{corpus}", f"{corpus} 1h", unit)
        for corpus in CORPORA
        # The official units: Cantonese is in characters.
        for lang, unit in (("eng", "char"), ("cmn", "pinyin"), ("yue", "char"))
    }
    assert len(asr) == 6 * len(SYSTEMS)
    # Two texts in each list; mls is in none of the tests.
    assert {f["utterances"] for f in asr} == {2}
    lid = [f for f in data["figures"] if f["track"] == "lid" and not f["part"]]
    assert {f["utterances"] for f in lid} == {2 * 3 * 2}
    assert {f["train"] for f in lid} == {"commonvoice fleurs 1h per_set"}


def test_texts_are_normalised_as_the_official_scripts_do(results):
    for corpus in CORPORA:
        name = f"asr_mlsuperb_{corpus}_yue_1h_char_lamer_ssl_layer2"
        path = results[1] / name / f"decode_yue_{corpus}" / "ref/text"
        assert "佢哋好。" in path.read_text(encoding="utf-8")
    data = json.loads((results[0] / "results.json").read_text())
    notes = [t["note"] for t in data["tables"] if t["title"].startswith("Table 1: c")]
    assert "Texts: official normalisation." in notes[0]
