"""A cell through run.sh: what it is called with, where it finds data, what stays."""

import json
import os
import signal
import stat

import pytest
import yaml

from espnet2_lamer.bin.experiment import main
from espnet2_lamer.errors import RecipeError
from espnet2_lamer.experiments.cells import plan_cells
from espnet2_lamer.experiments.definition import read_definition
from espnet2_lamer.experiments.figures import with_averages
from espnet2_lamer.experiments.launch import prepare_data, run_cell
from espnet2_lamer.experiments.matrix import Matrix, Store
from espnet2_lamer.experiments.measures import KINDS, CellMeasure, rate, read_measures
from espnet2_lamer.fileio.atomic import write_json

# Stands in for the recipe: says what it was asked, writes what stages leave behind.
RUN_SH = """#!/usr/bin/env bash
echo "$@" >> calls.txt
echo "${MACHINE_KIND}" >> kinds.txt
while [ $# -gt 0 ]; do declare "${1#--}"="$2"; shift 2; done
if [ -e fail ]; then echo "2026 ERROR: stage 7 has no luck"; exit 1; fi
if [ "${stage}" = 0 ]; then
    mkdir -p "${dumpdir}/raw" "${dumpdir}/units"
    mkdir -p "${expdir}/random" "${expdir}/ssl_stats"
    echo '{}' > "${expdir}/checkpoints.json"
    echo shapes > "${expdir}/ssl_stats/shape"
    exit
fi
cat "${expdir}/ssl_stats/shape" > /dev/null && ls "${dumpdir}/raw/" "${expdir}/random/"
mkdir -p "${expdir}/analysis" "${expdir}/ssl_lamer" "${dumpdir}/feature_store/x"
touch "${expdir}/ssl_lamer/checkpoint.pth" "${expdir}/ssl_lamer/valid.loss_m.best.pth"
cat > "${expdir}/analysis/forgetting.json" << EOF
{"layer": 1, "cka": {"eng": {"random": 0.1, "lamer": 0.${seed}5}}, "phone_probe": {}}
EOF
"""


@pytest.fixture
def recipe(small):
    script = small.recipe / "run.sh"
    script.write_text(RUN_SH)
    script.chmod(script.stat().st_mode | stat.S_IXUSR)
    small.store = Store(small.root)
    cells = plan_cells(read_definition(small.path), small.recipe)
    small.matrix = Matrix(
        read_definition(small.path),
        cells,
        small.store,
        lambda data, lock: prepare_data(data, small.store, small.recipe, lock),
        lambda cell, lock: run_cell(cell, small.store, small.recipe, lock),
    )
    return small


def calls(recipe):
    lines = (recipe.recipe / "calls.txt").read_text().splitlines()
    return [dict(zip(w[::2], w[1::2], strict=True)) for w in map(parse, lines)]


def parse(line):
    # The only value of two words.
    return line.replace("--skip_stages 7 8", "--skip_stages 7,8").split(" ")


def test_data_are_made_once_and_each_cell_runs_stages_7_to_12_on_them(recipe):
    assert recipe.matrix.run() == []
    data, *cells = calls(recipe)
    assert (data["--stage"], data["--stop_stage"]) == ("0", "9")
    assert (data["--skip_stages"], data["--seed"]) == ("7,8", "0")
    assert data["--preset"] == "tiny"
    assert len(cells) == 6
    assert {c["--seed"] for c in cells} == {"0", "1", "2"}
    for cell in cells:
        assert (cell["--stage"], cell["--stop_stage"]) == ("7", "12")
        assert cell["--skip_stages"] == "9"
        assert (cell["--ssl_tag"], cell["--control"]) == ("lamer", "false")
        assert cell["--preset"] == "tiny"
        assert cell["--datadir"] == data["--datadir"]
    assert len({c["--expdir"] for c in cells}) == 6


def test_a_cell_has_its_config_files_and_links_to_the_shared_data(recipe):
    recipe.matrix.run("bad/1")
    _, call = calls(recipe)
    config = yaml.safe_load(open(call["--ssl_config"], encoding="utf-8"))
    assert config == {"encoder_conf": {"lamer": {"rank": 1}}, "max_epoch": 2}
    cell = next(c for c in recipe.matrix.cells if (c.system, c.seed) == ("bad", 1))
    directory = recipe.store.cell(cell.key)
    shared = recipe.store.data(cell.data.key)
    assert os.path.samefile(directory / "dump" / "raw", shared / "dump" / "raw")
    assert os.path.samefile(directory / "exp" / "random", shared / "exp" / "random")
    # Training writes beside the shapes, so these are its own.
    assert not os.path.samefile(
        directory / "exp" / "ssl_stats", shared / "exp" / "ssl_stats"
    )


def test_a_cells_process_sees_its_environment_and_the_data_do_not(recipe, monkeypatch):
    monkeypatch.setenv("MACHINE_KIND", "here")
    old = recipe.matrix.cells
    recipe.change("    bad:\n", "    bad:\n        environment: {MACHINE_KIND: old}\n")
    recipe.matrix.cells = plan_cells(read_definition(recipe.path), recipe.recipe)
    assert [c.key for c in old] != [c.key for c in recipe.matrix.cells]
    recipe.matrix.run("*/0")
    # The data, then a cell of each.
    assert (recipe.recipe / "kinds.txt").read_text().split() == ["here", "here", "old"]
    cell = next(c for c in recipe.matrix.cells if (c.system, c.seed) == ("bad", 0))
    log = (recipe.store.cell(cell.key) / "log.txt").read_text()
    assert log.startswith("# MACHINE_KIND=old ./run.sh")


def test_the_weights_stay_and_what_only_resuming_needs_goes(recipe):
    recipe.matrix.run("good/0")
    (cell,) = (recipe.root / "cells").iterdir()
    assert (cell / "exp" / "ssl_lamer" / "valid.loss_m.best.pth").is_file()
    assert not (cell / "exp" / "ssl_lamer" / "checkpoint.pth").exists()
    assert not (cell / "dump" / "feature_store").exists()
    record = json.loads((cell / "record.json").read_text())
    assert [m["value"] for m in record["measures"]] == [0.05]
    assert json.loads((cell / "definition.json").read_text())["seed"] == 0


def test_nj_reaches_cells_and_data_and_changes_no_key(recipe, monkeypatch):
    for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
        monkeypatch.setenv(name, "7")
    monkeypatch.setattr(signal, "signal", lambda *_: None)
    words = ["--recipe", str(recipe.recipe), "--expdir", str(recipe.root)]
    main([str(recipe.path), *words, "--cells", "good/0", "--nj", "3"])
    data, cell = calls(recipe)
    assert data["--nj"] == cell["--nj"] == "3"
    assert os.environ["OMP_NUM_THREADS"] == "3"
    # The same cell: it is done.
    main([str(recipe.path), *words, "--cells", "good/0"])
    assert len(calls(recipe)) == 2
    main([str(recipe.path), *words, "--tables"])
    page = (recipe.root / recipe.path.stem / "RESULTS.md").read_text()
    assert "- cells done: `1 of 6`" in page
    assert "--tables" not in page
    # Without cells, recipe or data.
    csv = recipe.root / recipe.path.stem / "results.csv"
    kept = csv.rename(recipe.path.with_name("kept.csv"))
    main([str(recipe.path), "--from_csv", str(kept)])
    assert kept.with_suffix(".md").read_text() == page.replace("results.csv", kept.name)
    for more in (["--records", "a.jsonl"], ["--cells", "good/0"], words, ["--plan"]):
        with pytest.raises(SystemExit):
            main([str(recipe.path), "--from_csv", str(kept), *more])
    with pytest.raises(RecipeError, match="--nj: found 0, expected 1"):
        main([str(recipe.path), *words, "--nj", "0"])


def test_figures_are_read_anew_from_what_finished_cells_left(recipe, monkeypatch):
    recipe.matrix.run("good/*")
    words = ["--recipe", str(recipe.recipe), "--expdir", str(recipe.root)]
    before = {p: json.loads(p.read_text()) for p in recipe.root.glob("cells/*/rec*")}
    for path in before:
        left = path.parent / "exp" / "analysis" / "forgetting.json"
        left.write_text(json.dumps({"cka": {"eng": {"lamer": 0.7}}}))
    main([str(recipe.path), *words, "--remeasure"])
    assert len(calls(recipe)) == 4
    for path, record in before.items():
        after = json.loads(path.read_text())
        assert [m["value"] for m in after.pop("measures")] == [0.7]
        del record["measures"]
        assert after == record
    page = (recipe.root / recipe.path.stem / "RESULTS.md").read_text()
    assert "|CKA to base|eng (English)|\n|---|---|\n|good|0.700" in page
    assert "--remeasure" not in page
    left.unlink()
    text = path.read_text()
    with pytest.raises(RecipeError, match=r"good, seed \d: .*found no results"):
        main([str(recipe.path), *words, "--remeasure"])
    assert path.read_text() == text


def test_a_failing_run_names_what_it_said_and_its_log(recipe):
    recipe.matrix.run("good/0")
    (recipe.recipe / "fail").touch()
    (failed,) = recipe.matrix.run("bad/0")
    status = recipe.matrix.status(failed)
    assert status.why == "run.sh ended with code 1: 2026 ERROR: stage 7 has no luck"
    assert "ERROR: stage 7 has no luck" in open(status.log, encoding="utf-8").read()
    (recipe.recipe / "fail").unlink()
    assert recipe.matrix.run("bad/0") == []


def test_the_command_in_the_log_can_be_pasted(recipe):
    recipe.matrix.run("good/0")
    (cell,) = (recipe.root / "cells").iterdir()
    first = (cell / "log.txt").read_text().splitlines()[0]
    assert first.startswith("# ./run.sh --python ")
    assert "--stop_stage 12" in first


def test_measures_are_read_from_what_analysis_writes(tmp_path):
    analysis = tmp_path / "analysis"
    analysis.mkdir()
    parts = {"a": [3, 4], "b": [1, 4], "c": [0, 0]}
    accuracy = {"accuracy": {"parts": parts}}
    (analysis / "forgetting.json").write_text(
        json.dumps(
            {
                "phone_probe": {x: {"lamer": accuracy} for x in ("eng", "cmn")},
                "cka": {"eng": {"random": 0.1, "lamer": 0.9}},
            }
        )
    )
    (analysis / "masked_accuracy.json").write_text(
        json.dumps({"ssl_lamer": {"eng": {"parts": {"a": [1, 4]}}}})
    )
    (analysis / "expert_language.json").write_text(
        json.dumps([{"layer": 2, "router": "ffn", "value": 0.3, "chance": 0.1}])
    )
    layers = [{"load": [1.0, 1.0]}, {"load": [0.5, 2.0, 0.5]}]
    (analysis / "routing.json").write_text(json.dumps({"table": [], "layers": layers}))
    found = {m.name: m for m in read_measures(tmp_path, tmp_path)}
    assert found["phone probe eng"].value == 50  # 4 of 8; c has no labelled frame
    assert found["busiest expert's load (even: 1)"].value == 1.5
    assert set(found["phone probe eng"].parts) == {"a", "b"}
    assert found["CKA to base eng"].value == 0.9
    assert found["masked accuracy eng"].value == 25
    routing = found["expert-language information (nats) layer 2"]
    assert (routing.value, routing.null) == (0.3, 0.1)
    assert all(KINDS[m.kind].heads_free for m in found.values())
    averages = {name: group for name, group in with_averages(found)}
    assert [m.lang for m in averages["phone probe average"]] == ["eng", "cmn"]
    assert "masked accuracy average" not in averages


def test_a_directory_without_results_is_refused(tmp_path):
    with pytest.raises(RecipeError, match="no results of analysis or scoring"):
        read_measures(tmp_path, tmp_path)


def test_recognition_and_identification_are_read_utterance_by_utterance(tmp_path):
    from espnet2_lamer.evaluation.runs import Run

    run = Run(
        track="asr",
        benchmark="own",
        budget="all",
        corpus="",
        langs=("eng",),
        unit="char",
        system="lamer",
        upstream="x",
        layer=3,
        config="c",
        train_sets=("t",),
        dev_sets=("d",),
        tests={"eng": ("asr_eng_test",)},
    )
    write_json(run.directory(tmp_path) / "run.json", run.as_dict())
    here = run.directory(tmp_path) / "decode_eng"
    for name, text in (
        ("ref/text", "a hello\nb abcd\n"),
        ("ref/utt2lang", "a eng\nb eng\n"),
        ("free/1best_recog/text", "a hallo\nb abcd\n"),
    ):
        path = here / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    (measure,) = read_measures(tmp_path, tmp_path / "raw")
    assert measure.name == "ASR error eng (char)"
    assert (measure.lang, measure.unit) == ("eng", "char")
    assert measure.parts == {"a": (1, 5), "b": (0, 4)}
    assert measure.value == pytest.approx(100 / 9)


@pytest.mark.parametrize(
    ("kind", "label", "fields"),
    [
        ("ASR error", "eng (char)", ("eng", "", "char")),
        ("ASR error", "yue fleurs (jyutping)", ("yue", "yue fleurs", "jyutping")),
        ("LID accuracy", "(first tag)", ("", "", "first tag")),
        ("CKA to base", "cmn", ("cmn", "", "")),
    ],
)
def test_records_whose_names_held_language_and_unit_are_read(kind, label, fields):
    name = f"{kind} {label}"
    old = {"name": name, "kind": kind, "lang": label, "better": "lower"}
    old |= {"heads_free": False, "value": 2.0, "parts": {"a": [1, 5]}, "null": None}
    found = CellMeasure.from_dict(old)
    assert (found.lang, found.test, found.unit) == fields
    assert found.name == name
    assert CellMeasure.from_dict(found.as_dict()) == found


def test_records_whose_names_held_layer_and_router_are_read():
    kind = "expert-language information (nats)"
    old = {"name": f"{kind} layer 11 ffn", "kind": kind, "lang": "", "value": 0.3}
    found = CellMeasure.from_dict(old | {"parts": {}, "null": 0.1})
    assert (found.layer, found.router, found.name) == (11, "ffn", old["name"])


def test_ways_to_identify_have_an_average_each():
    found = {}
    for lang, by_tag, first in (("cmn", 1, 4), ("yue", 3, 2)):
        for unit, right in (("by tag", by_tag), ("first tag", first)):
            measure = rate("LID accuracy", lang, {"a": (right, 4)}, unit)
            found[measure.name] = measure
    averages = {n: [m.value for m in g] for n, g in with_averages(found) if len(g) > 1}
    assert averages == {
        "LID accuracy average (by tag)": [25.0, 75.0],
        "LID accuracy average (first tag)": [100.0, 50.0],
    }
