"""--recluster: a second round on units of the first round's model, in stage 7."""

import dataclasses
import logging
from pathlib import Path

import pytest

from espnet2_lamer.errors import RecipeError
from espnet2_lamer.recipe import pretraining, reclustering
from espnet2_lamer.recipe.command import read_options
from espnet2_lamer.recipe.files import labels
from espnet2_lamer.recipe.plan import _training
from espnet2_lamer.recipe.plan_costs import stage_seconds
from espnet2_lamer.recipe.plan_trial import Trials
from espnet2_lamer.recipe.reclustering import go_on_with_new_units, make_units
from espnet2_lamer.recipe.runner import Runner, chosen_stages
from espnet2_lamer.recipe.schedule import Schedule
from espnet2_lamer.recipe.stages import ssl1
from espnet2_lamer.recipe.upstreams import teacher_path, upstream_specs

RECIPE = Path(__file__).parents[2] / "egs2" / "lamer_ssl" / "ssl1"
TABLES = ("wav.scp", "utt2lang", "utt2num_samples", "phones.ctm")


@pytest.fixture
def read(tmp_path, monkeypatch):
    """Read the options of the mini preset, with changes."""
    monkeypatch.chdir(RECIPE)

    def make(**changes):
        where = {name: str(tmp_path / name[:4]) for name in ("expdir", "dumpdir")}
        values = where | {"recluster": 3} | changes
        return read_options(ssl1, [f"--{k}={v}" for k, v in values.items()])

    return make


@pytest.fixture
def options(read):
    """Options whose pretraining speech is there, with units of the teacher."""
    options = read()
    for name in ("ssl_train", "ssl_dev"):
        folder = options.raw / name
        folder.mkdir(parents=True)
        for table in TABLES:
            (folder / table).write_text(f"{name}_u 400\n")
        for of_teacher in ("text.km", "text.km.json", "kept_text.km"):
            (folder / of_teacher).write_text("u 1\n")
    return options


def test_the_second_round_has_names_and_folders_of_its_own(read):
    options = read()
    first, plain = options.first_round, read(recluster=0)
    assert (options.ssl_tag, first.ssl_tag) == ("lamer_reclustered", "lamer")
    assert dataclasses.asdict(first) == dataclasses.asdict(plain)
    for name in (
        *("ssl_experiment", "control_experiment", "codebook", "features", "stats"),
        *("ssl_train", "ssl_dev", "label_quality", "analysis", "variant", "results"),
    ):
        assert getattr(first, name) == getattr(plain, name)
        assert getattr(options, name) != getattr(plain, name), name
    assert options.raw == plain.raw and options.checkpoints == plain.checkpoints
    assert not {*labels(options)} & {*labels(first)}
    named = read(ssl_tag="mine")
    assert named.ssl_experiment.name == "ssl_mine"
    assert named.first_round.ssl_tag == "mine_first_round"
    assert read(allocation="1,1,2,2").ssl_tag == "lamer_1-1-2-2_reclustered"


def test_what_the_first_round_made_is_its_teacher_and_the_option_its_layer(read):
    options = read(recluster=2, teacher_layer=3)
    assert teacher_path(options) == str(options.first_round.ssl_experiment)
    for make in (reclustering.features, reclustering.labels):
        words = make(options)[0].arguments
        assert words[words.index("--teacher") + 1] == teacher_path(options)
        assert words[words.index("--layer") + 1] == "2"
    first = reclustering.features(options.first_round)[0].arguments
    assert first[first.index("--layer") + 1] == "3"
    described = {
        layer: upstream_specs(read(recluster=layer))["lamer"].description
        for layer in (0, 2)
    }
    assert "units of that model's layer 2" in described[2]
    assert "units of" not in described[0]


def test_stage_7_has_a_second_part_and_all_before_it_is_as_without(read):
    options, plain = read(), read(recluster=0)
    stages, before = ssl1.stages_of(options), ssl1.stages_of(plain)
    numbers = [stage.number for stage in stages]
    assert numbers == [0, 1, 2, 3, 4, 5, 6, 7, 7, *range(8, 15)]
    assert len({stage.name for stage in stages}) == len(stages)
    for now, then in zip(stages[:8], before, strict=False):
        for part in ("inputs", "outputs", "audio", "keep"):
            assert getattr(now, part)(options) == getattr(then, part)(plain), now.name
        assert now.variant(options) == then.variant(plain)
        assert now.depends_on == then.depends_on
    second = stages[8]
    weights = options.first_round.ssl_experiment / "valid.loss_m.best.pth"
    assert weights in second.inputs(options)
    assert {options.ssl_experiment, options.round_dir} <= {*second.keep(options)}
    assert {"recluster", "kmeans_hours"} <= {*second.options}
    # Stages after it read what it made.
    assert {*stages[9].inputs(options)} >= {*labels(options)}
    only = read(stage=7, stop_stage=7)
    chosen = [s.name for s in chosen_stages(ssl1.stages_of(only), only)]
    assert chosen == ["pretraining", "reclustering"]


def test_a_run_with_it_finds_the_first_round_done(read, caplog):
    """The record of a run without is that of the first part."""
    caplog.set_level(logging.INFO)
    calls = []

    def table(options):
        def done(stage):
            def run(o):
                calls.append(stage.name)
                for path in stage.outputs(o):
                    path.parent.mkdir(parents=True, exist_ok=True)
                    path.write_text("x")

            return dataclasses.replace(
                stage, run=run, inputs=lambda o: [], audio=lambda o: [], by_commands=0
            )

        return [done(s) for s in ssl1.stages_of(options) if 3 <= s.number <= 7]

    for recluster in (0, 3, 3, 0):
        options = read(recluster=recluster, stage=3, stop_stage=7)
        Runner(table(options), options).run()
    steps = ["features", "clusters", "labels", "statistics", "pretraining"]
    assert calls == [*steps, "reclustering"]
    assert (options.expdir / "stages" / "07_lamer_reclustered.json").is_file()


def commands_that(stop_at, calls):
    """Commands whose work is a file each; one of them is killed at its start."""

    class Command:
        def __init__(self, name, output):
            self.name, self.output = name, output

        def run(self):
            calls.append(self.name)
            if self.name == stop_at[0]:
                stop_at[0] = None
                raise KeyboardInterrupt
            self.output.parent.mkdir(parents=True, exist_ok=True)
            self.output.write_text(self.name)

    def make(*parts):
        return lambda o: [
            Command(name, getattr(o, where) / f) for name, where, f in parts
        ]

    return {
        "features": make(("dump", "features", "index.json")),
        "clusters": make(("kmeans", "units_dir", "codebook.npz")),
        "labels": make(
            *(("assign", name, "text.km") for name in ("ssl_train", "ssl_dev")),
            ("quality", "round_dir", "label_quality.json"),
        ),
    }


ALL = ["dump", "kmeans", "assign", "assign", "quality"]


@pytest.mark.parametrize(
    ("killed", "calls_in_all"),
    [
        ("dump", ["dump", *ALL]),
        ("kmeans", ["dump", "kmeans", *ALL]),
        ("assign", ["dump", "kmeans", "assign", *ALL[2:]]),
        ("quality", [*ALL, *ALL[2:]]),
        (None, ALL),
    ],
)
def test_making_units_goes_on_where_it_was_killed(
    options, monkeypatch, killed, calls_in_all
):
    calls, stop_at = [], [killed]
    for name, make in commands_that(stop_at, calls).items():
        monkeypatch.setattr(reclustering, name, make)
    if killed:
        with pytest.raises(KeyboardInterrupt):
            make_units(options)
    make_units(options)
    assert calls == calls_in_all
    make_units(options)
    assert calls == calls_in_all
    assert not options.features.exists()
    for folder in (options.ssl_train, options.ssl_dev):
        found = {path.name for path in folder.iterdir()}
        # Units of the teacher stay where they are.
        assert found == {*TABLES, "text.km"}
        assert (folder / "text.km").read_text() == "assign"
        original = options.raw / folder.name
        assert (original / "text.km").read_text() == "u 1\n"
        for table in TABLES:
            assert (folder / table).read_bytes() == (original / table).read_bytes()
    assert (options.stats / "train" / "text_shape").is_file()


def test_all_experts_go_on_from_the_first_rounds_and_the_control_does_not(
    options, monkeypatch
):
    trained = []

    def train_ssl(config, train, dev, stats, output, classes, words, log):
        trained.append((output.name, train, dev, words))

    monkeypatch.setattr(pretraining, "train_ssl", train_ssl)
    monkeypatch.setattr(pretraining, "_check_control", lambda options: None)
    monkeypatch.setattr(pretraining, "base_path", lambda options: "base")
    monkeypatch.setattr(pretraining, "load_pretraining_model", lambda path: None)
    monkeypatch.setattr(pretraining, "parameter_report", lambda model: {})
    monkeypatch.setattr(reclustering, "make_units", lambda options: None)
    config = options.first_round.ssl_experiment / "config.yaml"
    config.parent.mkdir(parents=True)
    config.write_text(
        "encoder_conf: {lamer: {allocation: [1, 3, 2, 2], rank: [6, 12, 9, 9]}}\n"
    )
    options.allocation = "auto"
    go_on_with_new_units(options)
    (control, *of_control), (name, *of_model) = trained
    assert control == "ssl_head_only_lamer_reclustered"
    assert name == "ssl_lamer_reclustered"
    for train, dev, _ in (of_control, of_model):
        assert (train, dev) == (options.ssl_train, options.ssl_dev)
    words = of_model[-1]
    first = str(options.first_round.ssl_experiment)
    assert words[words.index("--expand_from") + 1] == first
    assert words[words.index("--old_experts") + 1] == "shared"
    # As many experts, of the same ranks, as were found for the first round.
    assert "lamer.allocation=1,3,2,2" in words
    assert "lamer.rank=6,12,9,9" in words
    assert words[words.index("--monitor_control") + 1].endswith(control)
    assert "--expand_from" not in of_control[-1]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"recluster": -1}, "--recluster: found -1, expected 0 or more"),
        ({"sanity": "true"}, "--recluster: found 3 with --sanity true"),
        ({"num_nodes": 2}, "--recluster: found 3 with --num_nodes 2, expected one no"),
        (
            {"ssl_config": "conf/tuning/train_ssl_full_finetuning.yaml"},
            "3 with no experts in .*--base and --teacher exp/ssl_NAME of the first",
        ),
        ({"allocation": "0"}, "--recluster: found 3 with an allocation of 0"),
    ],
)
def test_what_cannot_go_on_is_refused_before_anything_runs(read, changes, message):
    with pytest.raises(RecipeError, match=message):
        read(**changes)


def test_experts_that_are_to_stay_are_refused(read, tmp_path):
    config = tmp_path / "more.yaml"
    text = (RECIPE / "conf/train_ssl_lamer_mini.yaml").read_text()
    config.write_text(f"expand_from: exp/ssl_before\n{text}")
    with pytest.raises(RecipeError, match="3 with expand_from in .*, expected none"):
        read(ssl_config=config)
    assert read(ssl_config=config, recluster=0).recluster == 0


def test_stage_0_knows_how_many_layers_there_are(read):
    from espnet2_lamer.recipe.base_training import _check_layers

    with pytest.raises(RecipeError, match="--recluster: found 5, expected 0 to 4"):
        _check_layers("mini/base", read(recluster=5))
    _check_layers("mini/base", read(recluster=4))


def test_a_plan_has_the_time_of_both_rounds(read):
    from types import SimpleNamespace

    options, plain = read(nj=1), read(nj=1, recluster=0)
    found = SimpleNamespace(
        audio=1000.0, held_out=100.0, features=500.0, texts=["eng"], per_update=20.0
    )
    found.schedule = Schedule(updates=50, per_epoch=25, epochs=2, warm_up=5)
    found.train = {"eng": 1000.0}
    trials = Trials(update=0.1, control=0.02, forward=0.01, teacher=0.03)
    trials.teacher_dim = trials.dim = 192
    speech = SimpleNamespace(parts={}, recordings=0)
    now = stage_seconds(options, speech, found, trials)
    before = stage_seconds(plain, speech, found, trials)
    second = now.pop("reclustering")
    assert now == before
    # Its own model hears all speech once; trainings and clustering are as before.
    clustering = before["clusters"] - 5
    expected = before["pretraining"] + 0.01 * 1100 + clustering
    assert second == pytest.approx(expected)
    lines = "\n".join(_training(options, found))
    assert "--recluster 3: then as many updates again" in lines
    assert "--recluster" not in "\n".join(_training(plain, found))
