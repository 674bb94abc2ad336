"""--ssl_config and --allocation: who decides, what the run is called, its control."""

import dataclasses
import json
import logging
from pathlib import Path

import pytest
import yaml

from espnet2_lamer.errors import RecipeError
from espnet2_lamer.fileio.datadir import write_table
from espnet2_lamer.recipe.benchmark import packages, planned_runs
from espnet2_lamer.recipe.options import Options
from espnet2_lamer.recipe.settle import control_settings, resolve_ssl_config

CONF = Path(__file__).parents[2] / "conf"


@pytest.fixture
def make(tmp_path):
    """Options of which only what decides about pretraining is real."""

    def make(config="train_ssl_lamer.yaml", **changes):
        values = {field.name: None for field in dataclasses.fields(Options)}
        values |= {
            "tune": ["head"],
            "eval_corpora": [],
            "upstream_mode": ["eval"],
            "ssl_config": CONF / config,
            "allocation": "",
            "ssl_tag": "",
            "control": True,
            "expdir": tmp_path / "exp",
            "datadir": tmp_path / "data",
            "dumpdir": tmp_path / "dump",
            "replay_langs": ["eng"],
            "new_langs": ["cmn"],
            "units": {"eng": "char", "cmn": "pinyin"},
            "upstreams": ["base", "lamer"],
            "seed": 0,
            "benchmark": "own",
            "budgets": ["all"],
            "tracks": ["asr", "lid"],
            "eval_langs": [],
            "asr_layer": 22,
            "lid_layer": 21,
            "asr_config": Path("asr.yaml"),
            "lid_config": Path("lid.yaml"),
        }
        return Options(**values | changes)

    return make


@pytest.fixture
def resolve(make):
    def resolve(*args, **changes):
        options = make(*args, **changes)
        resolve_ssl_config(options)
        return options

    return resolve


def test_without_an_allocation_the_yaml_decides(resolve, caplog):
    caplog.set_level(logging.INFO)
    found = {
        config: resolve(config).allocation
        for config in (
            "train_ssl_lamer.yaml",
            "train_ssl_lamer_mini.yaml",
            "tuning/train_ssl_milore.yaml",
            "tuning/train_ssl_lamer_2882.yaml",
            "tuning/train_ssl_head_only.yaml",
            "tuning/train_ssl_full_finetuning.yaml",
        )
    }
    assert list(found.values()) == ["2,4,6,8", "2,4,6,8", "5", "2,8,8,2", "0", ""]
    assert caplog.records == []


def test_an_allocation_on_the_command_line_is_said_and_shows_in_the_name(
    resolve, caplog
):
    caplog.set_level(logging.INFO)
    options = resolve(allocation="0, 0, 4, 8")
    assert options.allocation == "0,0,4,8"
    assert options.ssl_experiment.name == "ssl_lamer_0-0-4-8"
    (record,) = caplog.records
    assert "--allocation 0,0,4,8 replaces 2,4,6,8 of" in record.getMessage()


def test_auto_spreads_the_yamls_experts_and_shows_in_the_name(resolve):
    options = resolve(allocation="auto")
    assert options.allocation == "auto"
    assert options.ssl_experiment.name == "ssl_lamer_auto"
    options = resolve(allocation="learnt")
    assert options.ssl_experiment.name == "ssl_lamer_learnt"
    assert resolve("tuning/train_ssl_milore.yaml", allocation="auto").ssl_tag == (
        "milore_auto"
    )


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (
            "tuning/train_ssl_full_finetuning.yaml",
            "found auto, but .* trains the whole",
        ),
        ("tuning/train_ssl_head_only.yaml", "lamer.allocation 0; state counts there"),
    ],
)
@pytest.mark.parametrize("value", ["auto", "learnt"])
def test_counts_from_data_need_experts_to_spread(resolve, config, message, value):
    with pytest.raises(RecipeError, match=message.replace("auto", value)):
        resolve(config, allocation=value)


def test_the_yamls_own_allocation_on_the_command_line_changes_nothing(resolve, caplog):
    caplog.set_level(logging.INFO)
    assert resolve(allocation="2,4,6,8") == resolve()
    assert caplog.records == []


def test_every_config_has_an_experiment_of_its_own(resolve):
    configs = ["train_ssl_lamer.yaml"]
    configs += sorted(f"tuning/{p.name}" for p in CONF.glob("tuning/train_ssl_*.yaml"))
    assert len(configs) == 18
    runs = [resolve(config) for config in configs]
    for name in ("ssl_experiment", "analysis", "results"):
        assert len({getattr(run, name) for run in runs}) == len(runs), name
    heads = [head for run in runs for head in planned_runs(run)]
    lamer = {head.name for head in heads if head.system != "base"}
    assert len(lamer) == 3 * len(runs)
    assert len({head.name for head in heads if head.system == "base"}) == 3
    paths = [path for run in runs for path in packages(run).values()]
    assert len(set(paths)) == len(paths) == len(lamer) + len(runs)


@pytest.mark.parametrize(
    "config", ["train_ssl_lamer.yaml", "train_ssl_lamer_mini.yaml"]
)
def test_lamer_keeps_its_names_in_both_presets(resolve, tmp_path, config):
    options = resolve(config)
    exp = tmp_path / "exp"
    assert options.ssl_experiment == exp / "ssl_lamer"
    assert options.control_experiment == exp / "ssl_head_only"
    assert options.analysis == exp / "analysis"
    assert options.results == exp
    assert sorted(packages(options)) == [
        "asr_cmn_pinyin_lamer_layer22",
        "asr_eng_char_lamer_layer22",
        "lid_lamer_layer21",
        "ssl_lamer",
    ]


@pytest.mark.parametrize(
    ("config", "changes"),
    [
        ("tuning/train_ssl_head_only.yaml", {}),
        ("train_ssl_lamer.yaml", {"allocation": "0"}),
        ("tuning/train_ssl_milore.yaml", {"allocation": "0,0,0"}),
    ],
)
def test_a_run_of_the_head_alone_is_its_own_control(resolve, config, changes):
    options = resolve(config, **changes)
    assert options.control is False
    assert options.ssl_experiment == options.control_experiment


@pytest.mark.parametrize(
    ("config", "changes", "message"),
    [
        (
            "train_ssl_lamer.yaml",
            {"allocation": "2;4"},
            "--allocation: found '2;4', expected expert counts",
        ),
        ("train_ssl_lamer.yaml", {"allocation": "2,,4"}, "--allocation: found '2,,4'"),
        ("train_ssl_lamer.yaml", {"allocation": "-1"}, "--allocation: found '-1'"),
        (
            "tuning/train_ssl_full_finetuning.yaml",
            {"allocation": "2,4,6,8"},
            "found 2,4,6,8, but .*full_finetuning.yaml has no encoder_conf.lamer",
        ),
        ("train_ssl_lamer.yaml", {"ssl_tag": "a/b"}, "--ssl_tag: found 'a/b'"),
        ("train_ssl_lamer.yaml", {"ssl_tag": "base"}, "--ssl_tag: found 'base'"),
        ("train_ssl_lamer.yaml", {"ssl_tag": "head_only"}, "found 'head_only'"),
    ],
)
def test_what_contradicts_the_yaml_is_refused(resolve, config, changes, message):
    with pytest.raises(RecipeError, match=message):
        resolve(config, **changes)


def test_a_yaml_must_state_an_allocation_or_be_given_one(resolve, tmp_path):
    path = tmp_path / "train_ssl_mine.yaml"
    path.write_text("encoder_conf: {lamer: {rank: 4}}\n")
    with pytest.raises(RecipeError, match="lamer.allocation: found none, expected"):
        resolve(path)
    assert resolve(path, allocation="3").ssl_experiment.name == "ssl_mine_3"
    path.write_text("- a list\n")
    with pytest.raises(
        RecipeError, match="train_ssl_mine.yaml: found list, expected a mapp"
    ):
        resolve(path)
    path.write_text("a: [\n")
    with pytest.raises(RecipeError, match="train_ssl_mine.yaml: not valid YAML"):
        resolve(path)


def test_a_list_in_yaml_is_an_allocation_too(resolve, tmp_path):
    path = tmp_path / "train_ssl_list.yaml"
    path.write_text("encoder_conf: {lamer: {allocation: [2, 4]}}\n")
    assert resolve(path).allocation == "2,4"


def config(name):
    return yaml.safe_load((CONF / name).read_text(encoding="utf-8"))


def test_all_of_the_family_share_one_control():
    names = ["train_ssl_lamer.yaml"]
    names += [f"tuning/{path.name}" for path in CONF.glob("tuning/train_ssl_*.yaml")]
    controls = {name: control_settings(config(name)) for name in names}
    shared = controls.pop("train_ssl_lamer.yaml")
    # Without replay the control, too, would be trained on other data.
    other = controls.pop("tuning/train_ssl_lamer_no_replay.yaml")
    assert other == shared | {"exclude_langs": ["eng"]}
    # Of another schedule it is another control.
    large = controls.pop("tuning/train_ssl_lamer_large_updates.yaml")
    assert large != shared and large.keys() == shared.keys()
    assert all(settings == shared for settings in controls.values())
    assert control_settings(config("train_ssl_lamer_mini.yaml")) != shared
    # It changes how fast it is trained, and nothing else.
    cached = config("train_ssl_lamer.yaml") | {"feature_cache_gb": 5.0}
    assert control_settings(cached) == shared


@pytest.fixture
def stage7(resolve, monkeypatch):
    """Run stage 7 with a training that only notes how it was called."""
    from espnet2_lamer.recipe import pretraining

    calls = []

    def train(config, train_dir, dev_dir, stats, experiment, classes, options, log):
        calls.append((experiment.name, options[: options.index("--seed")]))

    monkeypatch.setattr(pretraining, "train_ssl", train)
    monkeypatch.setattr(pretraining, "load_pretraining_model", lambda path: None)
    monkeypatch.setattr(pretraining, "parameter_report", lambda model: {})

    def run(*args, labels="one", **changes):
        options = resolve(*args, ngpu=0, num_nodes=1, n_clusters=9, **changes)
        options.expdir.mkdir(exist_ok=True)
        record = {"base": {"path": "the/base", "sha256": "00"}}
        options.checkpoints.write_text(json.dumps(record))
        units = options.raw / "ssl_train" / "text.km.json"
        units.parent.mkdir(parents=True, exist_ok=True)
        units.write_text(labels)
        for name in ("ssl_train", "ssl_dev"):
            write_table(options.raw / name / "wav.scp", {})
        calls.clear()
        pretraining.continue_pretraining(options)
        return list(calls)

    return run


BASE = ["--encoder_conf", "base=the/base"]


@pytest.mark.parametrize(
    ("config", "name", "experts"),
    [
        ("train_ssl_lamer.yaml", "ssl_lamer", "2,4,6,8"),
        ("tuning/train_ssl_milore.yaml", "ssl_milore", "5"),
        ("tuning/train_ssl_hubert_lora.yaml", "ssl_hubert_lora", "1"),
        ("tuning/train_ssl_full_finetuning.yaml", "ssl_full_finetuning", None),
    ],
)
def test_the_control_of_every_config_has_no_experts(stage7, config, name, experts):
    own = [] if experts is None else ["--encoder_conf", f"lamer.allocation={experts}"]
    none = ["--encoder_conf", "lamer={allocation: 0}"]
    # The control first: the other's validations show its figures.
    assert stage7(config) == [("ssl_head_only", BASE + none), (name, BASE + own)]


@pytest.mark.parametrize(
    ("config", "allocation", "expected"),
    [
        ("tuning/train_ssl_full_finetuning.yaml", "", None),
        ("tuning/train_ssl_full_finetuning.yaml", "0", {"allocation": 0}),
        ("tuning/train_ssl_milore.yaml", "0", {"allocation": 0}),
        ("tuning/train_ssl_hubert_lora.yaml", "2,4", None),
    ],
)
def test_espnet_reads_the_options_as_they_are_meant(config, allocation, expected):
    from espnet2_lamer.recipe.settle import experts_options
    from espnet2_lamer.tasks.hubert import LamerHubertTask

    path = CONF / config
    own = yaml.safe_load(path.read_text(encoding="utf-8"))["encoder_conf"].get("lamer")
    cmd = ["--config", str(path), *experts_options(allocation)]
    found = LamerHubertTask.get_parser().parse_args(cmd).encoder_conf.get("lamer")
    if expected is None and allocation:
        expected = own | {"allocation": allocation}
    assert found == expected


def test_stage_7_trains_with_the_counts_that_auto_found(stage7, monkeypatch):
    from espnet2_lamer.recipe import pretraining

    monkeypatch.setattr(pretraining, "automatic_allocation", lambda o: "1,9")
    own = ["--encoder_conf", "lamer.allocation=1,9"]
    none = ["--encoder_conf", "lamer={allocation: 0}"]
    assert stage7(allocation="auto") == [
        ("ssl_head_only", BASE + none),
        ("ssl_lamer_auto", BASE + own),
    ]


def test_a_head_only_run_trains_once(stage7):
    assert [name for name, _ in stage7("tuning/train_ssl_head_only.yaml")] == [
        "ssl_head_only"
    ]


def test_one_control_serves_the_family_and_no_other_run(stage7):
    assert len(stage7()) == 2
    assert len(stage7("tuning/train_ssl_milore.yaml")) == 2
    assert len(stage7("tuning/train_ssl_head_only.yaml")) == 1
    with pytest.raises(RecipeError, match="ssl_head_only.*another config; .*--control"):
        stage7("tuning/train_ssl_lamer_no_replay.yaml")
    assert len(stage7("tuning/train_ssl_lamer_no_replay.yaml", control=False)) == 1


def test_a_control_of_other_labels_or_another_seed_is_not_taken(stage7):
    stage7()
    with pytest.raises(RecipeError, match=r"ssl_head_only/inputs.json: .*another lab"):
        stage7("tuning/train_ssl_milore.yaml", labels="two")
    with pytest.raises(RecipeError, match="another seed;"):
        stage7("tuning/train_ssl_milore.yaml", seed=1)
    assert len(stage7("tuning/train_ssl_milore.yaml")) == 2
