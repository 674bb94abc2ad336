"""Seeds, learning rates and baselines of the heads: checked first, each its own run."""

from pathlib import Path

import pytest

from espnet2_lamer.errors import RecipeError

RECIPE = Path(__file__).parents[2] / "egs2" / "lamer_ssl" / "ssl1"


@pytest.fixture
def command(tmp_path, monkeypatch):
    """The command line of the mini preset's options, with changes."""
    from espnet2_lamer.bin.recipe import get_parser

    monkeypatch.chdir(RECIPE)

    def make(**changes):
        names = {s for a in get_parser()._actions for s in a.option_strings}
        known = {n[2:]: "1" for n in names if n.startswith("--") and n != "--help"}
        values = {
            "retrain": "false",
            "trust_s3prl_files": "false",
            "control": "false",
            "sanity": "false",
            "dry_run": "false",
            "drop_overlap": "true",
            "cross_corpus": "false",
            "skip_stages": "",
            "stage": "12",
            "stop_stage": "12",
            "units": "",
            "new_langs": "cmn yue",
            "replay_langs": "eng",
            "upstreams": "random base lamer",
            "tracks": "asr lid",
            "benchmark": "own",
            "budgets": "all",
            "eval_langs": "",
            "eval_lists": "",
            "lid_reading": "per_set",
            "multi_unit": "char",
            "ssl_tag": "lamer",
            "allocation": "2,4,6,8",
            "eval_seeds": "",
            "learning_rates": "",
            "baselines": "",
            "ssl_config": "conf/train_ssl_lamer_mini.yaml",
            "expdir": str(tmp_path / "exp"),
            **{f"{kind}_config": "run.sh" for kind in ("asr", "lid", "multi")},
        }
        given = {name: v for name, v in (values | changes).items() if name in known}
        return [f"--{name}={value}" for name, value in (known | given).items()]

    return make


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"eval_seeds": "0 0"}, "--eval_seeds: found 0 0, expected different seeds"),
        ({"eval_seeds": "-1"}, "--eval_seeds: found -1, expected different seeds"),
        ({"learning_rates": "1e-3 0"}, "expected different rates above 0"),
        ({"learning_rates": "1e-3 0.001"}, "--learning_rates: found 0.001 0.001"),
        ({"baselines": "hubert"}, "--baselines: found 'hubert', expected some of"),
        ({"baselines": "base", "upstreams": "lamer"}, "of --upstreams: lamer$"),
    ],
)
def test_wrong_seeds_rates_and_baselines_are_refused_before_anything_runs(
    command, tmp_path, changes, message
):
    from espnet2_lamer.bin.recipe import main

    with pytest.raises(RecipeError, match=message):
        main(command(**changes))
    assert not (tmp_path / "exp").exists()


def test_every_seed_and_rate_is_a_run_of_its_own(command):
    from espnet2_lamer.bin import recipe
    from espnet2_lamer.recipe.benchmark import planned_runs
    from espnet2_lamer.recipe.options import Options

    arguments = command(eval_seeds="0 3", learning_rates="1e-3 1e-4", tracks="asr")
    values = vars(recipe.get_parser().parse_args(arguments))
    values["units"] = {"eng": "char", "cmn": "pinyin", "yue": "jyutping"}
    runs = planned_runs(Options(**values))
    assert len(runs) == len({run.name for run in runs}) == 3 * 3 * 2 * 2
    found = {(run.seed, run.learning_rate) for run in runs}
    assert found == {(0, 1e-3), (0, 1e-4), (3, 1e-3), (3, 1e-4)}


@pytest.mark.parametrize(
    ("benchmark", "name"), [("own", "exp"), ("paper", "exp/results_paper")]
)
def test_benchmarks_do_not_overwrite_each_others_results(
    command, tmp_path, benchmark, name
):
    from espnet2_lamer.bin import recipe
    from espnet2_lamer.recipe.options import Options

    arguments = command(benchmark=benchmark)
    options = Options(**vars(recipe.get_parser().parse_args(arguments)))
    assert options.results == tmp_path / name
