"""ML-SUPERB 2.0 on a tiny tree of its layout: stages 9 to 12 with both of its heads."""

import json
import re
from pathlib import Path

import pytest
import yaml

from espnet2_lamer.evaluation.challenge import challenge_figures, challenge_rates
from espnet2_lamer.fileio.datadir import read_table
from tests.mlsuperb2_tree import utterances, write_folders, write_parquet
from tests.recipe.evaluation_options import options_of
from tests.recipe.test_tracks import write_upstream

TUNING = Path(__file__).parents[2] / "conf" / "tuning"
# Two ESPnet trainings, two decodings each.
pytestmark = pytest.mark.slow


@pytest.fixture(
    scope="module",
    params=[("transformer", write_folders), ("e_branchformer", write_parquet)],
    ids=["transformer, folders", "e_branchformer, parquet"],
)
def finished(request, tmp_path_factory):
    from espnet2_lamer.recipe import data, scoring
    from espnet2_lamer.recipe.benchmark import planned_runs

    kind, write = request.param
    root = tmp_path_factory.mktemp(kind)
    write(root / "tree", utterances(train=4, dev=2))
    name = f"train_asr_mlsuperb2_{kind}_mini.yaml"
    config = yaml.safe_load((TUNING / name).read_text(encoding="utf-8"))
    config |= {"max_epoch": 1, "num_iters_per_epoch": 2}
    config["scheduler_conf"]["total_steps"] = 2
    (root / name).write_text(yaml.safe_dump(config))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MLSUPERB2", str(root / "tree"))
        patch.chdir(Path(__file__).parents[2] / "egs2/lamer_ssl/ssl1")
        options = options_of(
            root,
            datadir=root / "data",
            benchmark="mlsuperb2",
            budgets=["all"],
            tracks=["asr_lid"],
            eval_langs=["all"],
            upstreams=[str(write_upstream(root / "tiny"))],
            lid_layer="all",
            multi_config=root / name,
            corpus="fleurs",
            control=False,
            baselines=[],
            eval_seeds=[],
            learning_rates=[],
            nj=1,
            ngpu=0,
            dask="",
            max_bad_audio=1.0,
            store_dtype="float32",
        )
        data.format_evaluation(options)
        scoring.train_heads(options, options.tracks)
        scoring.score(options)
        (run,) = planned_runs(options)
    return options, run, kind


def test_the_head_is_of_its_kind_and_reads_every_layer(finished):
    options, run, kind = finished
    assert run.name == f"asr_lid_mlsuperb2_char_tiny_sum_{kind}_mini"
    config = yaml.safe_load(
        (run.directory(options.expdir) / "final/config.yaml").read_text()
    )
    assert config["encoder"] == kind
    assert config["frontend_conf"]["layer"] == "all"
    assert {"[cmn]", "[eng]", "[lug]"} <= set(config["token_list"])


def test_results_have_the_challenges_figures_of_languages_and_dialects(finished):
    options, run, kind = finished
    results = options.expdir / f"results_mlsuperb2_{kind}_mini"
    expected = {}
    for label in ("dev", "dev_dialect"):
        here = run.directory(options.expdir) / f"decode_{label}"
        files = here / "ref/text", here / "free/1best_recog/text"
        rates = challenge_rates(*files, read_table(here / "ref/utt2lang"))
        figures = challenge_figures(*rates, dialects=label != "dev")
        expected |= {f"{label}: {name}": m.value for name, m in figures.items()}
    data = json.loads((results / "results.json").read_text(encoding="utf-8"))
    title = "ML-SUPERB 2.0 challenge"
    found = {f["label"]: f["value"] for f in data["figures"] if f["table"] == title}
    assert found == pytest.approx(expected)
    assert len(found) == 6
    page = (results / "RESULTS.md").read_text(encoding="utf-8")
    assert re.search(r"\|dev: Worst 15 CER, 6 utt\.\|[\d.]+ \(all 3\)\|", page)
    assert f"Head: {run.head_kind}." in page


def test_what_is_there_is_not_trained_again(finished, caplog):
    from espnet2_lamer.recipe import scoring

    options, run, _ = finished
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MLSUPERB2", str(options.datadir.parent / "tree"))
        with caplog.at_level("INFO"):
            scoring.train_heads(options, options.tracks)
    assert f"{run.name}: already trained" in caplog.text
