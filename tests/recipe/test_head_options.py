"""Seeds, learning rates and baselines of the heads: checked first, each its own run."""

from pathlib import Path

import pytest

from espnet2_lamer.errors import RecipeError

RECIPE = Path(__file__).parents[2] / "egs2" / "lamer_ssl" / "ssl1"


@pytest.fixture
def command(tmp_path, monkeypatch):
    """The command line of the mini preset, with changes."""
    monkeypatch.chdir(RECIPE)
    values = {"stage": "12", "stop_stage": "12", "expdir": str(tmp_path / "exp")}

    def make(**changes):
        return [f"--{name}={value}" for name, value in (values | changes).items()]

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
    from espnet2_lamer.recipe.benchmark import planned_runs
    from espnet2_lamer.recipe.command import read_options
    from espnet2_lamer.recipe.stages import ssl1

    arguments = command(eval_seeds="0 3", learning_rates="1e-3 1e-4", tracks="asr")
    options = read_options(ssl1, arguments)
    runs = planned_runs(options)
    assert len(runs) == len({run.name for run in runs}) == 3 * 3 * 2 * 2
    found = {(run.seed, run.learning_rate) for run in runs}
    assert found == {(0, 1e-3), (0, 1e-4), (3, 1e-3), (3, 1e-4)}


@pytest.mark.parametrize(
    ("benchmark", "name"), [("own", "exp"), ("paper", "exp/results_paper")]
)
def test_benchmarks_do_not_overwrite_each_others_results(
    command, tmp_path, benchmark, name
):
    from espnet2_lamer.recipe.command import read_options
    from espnet2_lamer.recipe.stages import ssl1

    budget = "all" if benchmark == "own" else "1h"
    options = read_options(ssl1, command(benchmark=benchmark, budgets=budget))
    assert options.results == tmp_path / name
