"""run.sh: every option is documented, wrong ones end with exit code 2 and a reason."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

RECIPE = Path(__file__).parents[2] / "egs2" / "lamer_ssl" / "ssl1"


def run(*arguments):
    return subprocess.run(
        ["./run.sh", "--python", sys.executable, *arguments],
        cwd=RECIPE,
        capture_output=True,
        text=True,
        timeout=300,
    )


@pytest.fixture(scope="module")
def parser_options():
    from espnet2_lamer.bin.recipe import get_parser

    actions = get_parser()._actions
    return {s for a in actions for s in a.option_strings if s.startswith("--")}


@pytest.mark.parametrize("flag", ["--help", "-h"])
def test_help_lists_exactly_the_options_that_the_program_takes(flag, parser_options):
    result = run(flag)
    assert result.returncode == 0 and result.stderr == ""
    shown = set(re.findall(r"^  (--\w+)", result.stdout, re.MULTILINE))
    assert shown == parser_options - {"--help"}


def test_help_shows_all_stages_and_the_defaults_of_the_preset():
    mini, paper = run("--help").stdout, run("--preset", "paper", "--help").stdout
    numbers = {int(n) for n in re.findall(r"(?:^|  ) ?(\d+)  \w", mini, re.MULTILINE)}
    assert numbers == set(range(15))
    assert "(mini/base)" in mini and "(mini/base)" not in paper
    assert "facebook/hubert-large-ll60k" in paper
    assert run("--preset=paper", "--help").stdout == paper


def test_options_given_before_help_are_shown_as_the_defaults():
    assert "number of units K (321)" in run("--n_clusters", "321", "--help").stdout


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--no_such_option", "1"], "unrecognized arguments: --no_such_option"),
        (["--no-such-option=1"], "unrecognized arguments: --no_such_option"),
        (["--n_clusters"], "--n_clusters: expected one argument"),
        (["--preset"], "--preset: expected one argument"),
        (["stage", "3"], "unrecognized arguments: stage 3"),
        (["-x"], "unrecognized arguments: -x"),
        (["--stage", "15"], "--stage 15: expected 0 to 14"),
        (["--stage", "-1"], "--stage -1: expected 0 to 14"),
        (["--stop_stage", "99"], "--stop_stage 99: expected 0 to 14"),
        (["--stop-stage=x"], "--stop_stage: invalid int value: 'x'"),
        (["--stage="], "--stage: invalid int value: ''"),
        (["--stage", "5", "--stop_stage", "3"], "--stop_stage 3: expected --stage (5)"),
        (["--preset", "none"], "--preset none: conf/presets/none.sh not found"),
        (["--preset", "../x"], "--preset ../x: expected a name in conf/presets"),
        (["--preset=none"], "--preset none: conf/presets/none.sh not found"),
    ],
)
def test_wrong_usage_exits_with_2_and_says_what_is_wrong(arguments, message):
    result = run(*arguments)
    assert result.returncode == 2
    assert result.stdout == ""
    (line,) = result.stderr.strip().splitlines()
    assert line.startswith("run.sh: ") and message in line


def test_a_value_of_the_wrong_kind_is_refused_by_the_program(tmp_path):
    result = run("--n_clusters", "many", "--expdir", str(tmp_path / "exp"))
    assert result.returncode == 2
    assert "argument --n_clusters: invalid int value: 'many'" in result.stderr
    assert not (tmp_path / "exp").exists()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"new_langs": ""}, "--new_langs: found none"),
        (
            {"new_langs": "cmn eng"},
            "--new_langs and --replay_langs: eng is named twice",
        ),
        ({"n_clusters": "0"}, "--n_clusters: found 0, expected 1 or more"),
        ({"ssl_config": "conf/none.yaml"}, "--ssl_config: conf/none.yaml not found"),
        ({"units": "eng=runes"}, "--units: found 'eng=runes', expected LANG=UNIT"),
        (
            {"stage": "8", "stop_stage": "9", "sanity": "true"},
            "--sanity: found stages 8 to 9, expected a range with stage 7",
        ),
        ({"max_missing": "101"}, "--max_missing: found 101, expected 0 to 100 per"),
    ],
)
def test_options_that_contradict_are_refused_before_anything_runs(
    changes, message, tmp_path, monkeypatch
):
    from espnet2_lamer.bin.recipe import main
    from espnet2_lamer.errors import RecipeError

    monkeypatch.chdir(RECIPE)
    values = {"expdir": str(tmp_path / "exp")} | changes
    with pytest.raises(RecipeError, match=message):
        main([f"--{name}={value}" for name, value in values.items()])
    assert not (tmp_path / "exp").exists()


def test_true_or_false_is_all_that_a_switch_takes(parser_options):
    from espnet2_lamer.bin.recipe import get_parser

    with pytest.raises(SystemExit) as exit_:
        get_parser().parse_args(["--retrain", "yes"])
    assert exit_.value.code == 2
