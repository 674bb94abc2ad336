"""Options are never dropped: what stages that are left out were run with must agree."""

import json
import shlex
from dataclasses import fields
from pathlib import Path

import pytest

from espnet2_lamer.errors import RecipeError
from espnet2_lamer.recipe.agreement import plain
from espnet2_lamer.recipe.command import read_options
from espnet2_lamer.recipe.runner import Runner, chosen_stages
from espnet2_lamer.recipe.stages import ssl1
from espnet2_lamer.recipe.whisper.stages import asr1
from tests.recipe.test_run_sh import RECIPE as SSL1
from tests.recipe.whisper.test_run_sh import RECIPE as ASR1

RECIPES = {"ssl1": (ssl1, SSL1), "asr1": (asr1, ASR1)}
# Values other than the presets', by how an option is read.
OTHER = {
    "base": "/other/base",
    "teacher": "/nonexistent",
    "corpus": "manifest",
    "manifest": "other.tsv",
    "new_langs": "yue",
    "replay_langs": "deu",
    "replay_sampling": "speaker",
    "benchmark": "paper",
    "budgets": "1h",
    "tracks": "lid",
    "eval_langs": "cmn",
    "lid_reading": "total",
    "multi_unit": "bpe",
    "units": "cmn=char",
    "text_norm": "official",
    "upstream_mode": "train",
    "baselines": "random",
    "upstreams": "base",
    "tune": "all",
    "lm_train_text": "eng=README.md",
    "asr_layer": "1",
    "lid_layer": "1",
    "store_dtype": "float16",
    "allocation": "1,1,1,1",
    "langs": "eng",
    "prompts": "eng=en cmn=zh yue=new:zh",
    "systems": "multilingual",
    "pack": "mole",
}


@pytest.fixture
def run(tmp_path, monkeypatch):
    """Return a function that checks a command line, after all stages have run."""
    places = [f"--{name}dir={tmp_path / name}" for name in ("exp", "dump", "data")]

    def read(name, *cmd):
        recipe, folder = RECIPES[name]
        monkeypatch.chdir(folder)
        options = read_options(recipe, [*places, *cmd])
        return Runner(recipe.stages_of(options), options)

    def record(name, *cmd, stages=range(20)):
        runner = read(name, *cmd)
        for stage in runner.stages:
            if stage.number in stages:
                values = {n: getattr(runner.options, n) for n in stage.options}
                state = {"fingerprint": {"options": plain(values), "inputs": {}}}
                path = runner._state_file(stage)
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_text(json.dumps(state | {"status": "done", "outputs": {}}))

    def check(name, *cmd):
        runner = read(name, *cmd)
        runner.check_options(chosen_stages(runner.stages, runner.options))

    check.record, check.places = record, places
    return check


def refusal(run, *cmd):
    with pytest.raises(RecipeError) as error:
        run(*cmd)
    text, apply, _, keep = str(error.value).splitlines()
    return text, shlex.split(apply), shlex.split(keep)


def values_of(words):
    return dict(zip(words[1::2], words[2::2], strict=True))


@pytest.mark.parametrize("value", ["/nonexistent", "mfcc", "has a space"])
def test_another_teacher_than_stage_0_recorded_stops_a_run_without_stage_0(run, value):
    run.record("ssl1")
    cmd = ("--stage=3", "--stop_stage=5", "--teacher", value)
    text, apply, keep = refusal(run, "ssl1", *cmd)
    assert f"--teacher: found {value}, but stage 0 (base and" in text
    assert "was run with mini/teacher" in text
    applied, kept = values_of(apply), values_of(keep)
    assert (applied["--stage"], applied["--stop_stage"]) == ("0", "5")
    assert (applied["--teacher"], kept["--teacher"]) == (value, "mini/teacher")
    for place in run.places:
        option, _, path = place.partition("=")
        assert applied[option] == kept[option] == path
    # Pasted, both do what they say.
    run("ssl1", *apply[1:])
    run("ssl1", *keep[1:])


@pytest.mark.parametrize("recipe", RECIPES)
def test_every_option_that_an_earlier_stage_depends_on_counts(run, recipe, tmp_path):
    run.record(recipe)
    table, _ = RECIPES[recipe]
    usual = read_options(table, [])
    declared = {field.name: field.metadata for field in fields(table.options)}
    # With these there is another record, or none.
    names_another = {"allocation", "ssl_config", "benchmark", "eval_corpora"}
    tried = []
    for stage in [*table][:-1]:
        for name in stage.made_with & {*declared} - names_another:
            before = getattr(usual, name)
            other = OTHER.get(name, "4")
            if isinstance(before, bool):
                other = str(not before).lower()
            elif declared[name]["exists"]:
                other = str(tmp_path / f"{name}.yaml")
                first = before[0] if isinstance(before, list) else before
                (tmp_path / f"{name}.yaml").write_text(Path(first).read_text())
            text, *_ = refusal(
                run, recipe, f"--stage={stage.number + 1}", f"--{name}={other}"
            )
            assert f"--{name}: found " in text
            tried.append(name)
    assert len(tried) > 30


def test_a_value_of_the_preset_that_was_not_recorded_counts_too(run):
    run.record("ssl1", "--corpus=manifest", "--manifest=my.tsv", "--kmeans_hours=2")
    text, apply, keep = refusal(run, "ssl1", "--stage=4")
    assert "--corpus: found mini, which was not given here, but stage 1" in text
    assert "--kmeans_hours: found 0.25" in text and "was run with 2" in text
    assert values_of(keep)["--manifest"] == "my.tsv"
    run("ssl1", *keep[1:])
    run("ssl1", *apply[1:])


@pytest.mark.parametrize(
    "more",
    [
        ["--nj=7", "--ngpu=1", "--num_nodes=2", "--dask=tcp://x:1", "--python=p"],
        ["--feature_store_gb=1", "--max_missing=3", "--trust_s3prl_files=true"],
        ["--asr_layer=2", "--stage=9"],  # stage 0 only looks whether it is there
        ["--n_clusters=50"],  # of the stages that run and of later ones
        ["--stage=7", "--allocation=0,0,4,8"],  # of the README
    ],
)
def test_what_changes_no_result_of_an_earlier_stage_stops_nothing(run, more, caplog):
    run.record("ssl1", stages=range(8))
    run("ssl1", "--stage=4", *more)
    assert caplog.text == ""


def test_what_no_chosen_stage_reads_stops_if_it_differs_or_is_named(run, caplog):
    cmd = ("ssl1", "--stop_stage=2", "--n_clusters=50", "--lid_layer=1")
    run(*cmd)
    assert "reads --lid_layer (stage 11), --n_clusters (stage 4)" in caplog.text
    run.record("ssl1")
    text, apply, _ = refusal(run, *cmd)
    assert "--n_clusters: found 50, but stage 4 (k-means) was run with 100" in text
    assert values_of(apply)["--stop_stage"] == "11"


def test_results_that_were_replaced_by_hand_are_not_those_of_the_record(run, tmp_path):
    run.record("ssl1")
    path = tmp_path / "exp" / "stages" / "04.json"
    state = json.loads(path.read_text())
    path.write_text(json.dumps(state | {"outputs": {str(tmp_path / "gone"): "0"}}))
    run("ssl1", "--stage=5", "--n_clusters=50")


def test_what_an_earlier_version_did_not_record_is_not_known(run, tmp_path):
    run.record("ssl1")
    path = tmp_path / "exp" / "stages" / "00.json"
    state = json.loads(path.read_text())
    del state["fingerprint"]["options"]["teacher"]
    path.write_text(json.dumps(state))
    run("ssl1", "--stage=3", "--teacher=/other")
    text, *_ = refusal(run, "ssl1", "--stage=3", "--base=/other")
    assert "--teacher" not in text


def test_a_stage_that_was_begun_and_not_ended_is_named(run, tmp_path, caplog):
    run.record("ssl1")
    path = tmp_path / "exp" / "stages" / "00.json"
    path.write_text(path.read_text().replace("done", "running"))
    run("ssl1", "--stage=3")
    assert "stage 0 (base and teacher checkpoints) was begun and has not" in caplog.text


def test_a_missing_file_repeats_the_users_options(run, tmp_path, monkeypatch):
    monkeypatch.chdir(SSL1)
    cmd = [*run.places, "--stage=3", "--skip_stages=4 5", "--kmeans_hours=0.5"]
    options = read_options(ssl1, cmd)
    with pytest.raises(RecipeError, match="it is made by stage 0") as error:
        Runner(ssl1.stages, options).run()
    words = shlex.split(str(error.value).rpartition("): ")[2])
    values = values_of(words)
    assert values["--expdir"] == str(tmp_path / "exp")
    assert values["--kmeans_hours"] == "0.5" and "--skip_stages" not in values
    assert (values["--stage"], values["--stop_stage"]) == ("0", "0")


def test_a_command_is_read_back_as_it_was_given(run, monkeypatch):
    monkeypatch.chdir(SSL1)
    cmd = ["--lid_layer=-1", "--units=cmn=char eng=bpe", "--eval_seeds=0 1"]
    cmd += ["--manifest=my dir/a'b.tsv", "--drop_overlap=false", "--max_duration=7.5"]
    options = read_options(ssl1, cmd)
    again = read_options(ssl1, shlex.split(options.command())[1:])
    assert again.given == options.given and vars(again) == vars(options) | {
        "given": again.given
    }


def test_a_value_of_the_preset_gives_way_to_what_was_given(run, caplog, monkeypatch):
    monkeypatch.chdir(ASR1)
    systems = "--systems=multilingual experts mole"
    options = read_options(asr1, [systems, "--shared_layers=3 4 5"])
    assert options.pack == ["experts", "mole"]
    assert "--pack: experts mole kd_layerwise of the preset gives way" in caplog.text
    with pytest.raises(RecipeError, match="--pack: found kd_output"):
        read_options(asr1, [systems, "--pack=kd_output"])
