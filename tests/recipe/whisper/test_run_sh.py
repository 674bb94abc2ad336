"""asr1/run.sh: every option is documented, wrong ones end with a reason."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

RECIPE = Path(__file__).parents[3] / "egs2" / "lamer_ssl" / "asr1"


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
    from espnet2_lamer.bin.whisper_recipe import get_parser

    actions = get_parser()._actions
    return {s for a in actions for s in a.option_strings if s.startswith("--")}


def test_help_lists_exactly_the_options_that_the_program_takes(parser_options):
    result = run("--help")
    assert result.returncode == 0 and result.stderr == ""
    shown = set(re.findall(r"^  (--\w+)", result.stdout, re.MULTILINE))
    assert shown == parser_options - {"--help"}


def test_help_shows_all_stages_and_the_defaults_of_the_preset():
    mini, paper = run("--help").stdout, run("--preset", "paper", "--help").stdout
    numbers = {int(n) for n in re.findall(r"(?:^|  ) ?(\d+)  \w", mini, re.MULTILINE)}
    assert numbers == set(range(12))
    assert "(base)" in mini and "(medium)" in paper
    assert "(commonvoice aishell1)" in paper


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--no_such_option", "1"], "unrecognized arguments: --no_such_option"),
        (["--n_clusters", "100"], "unrecognized arguments: --n_clusters"),
        (["--langs"], "--langs: expected one argument"),
        (["stage", "3"], "unrecognized arguments: stage 3"),
        (["--stage", "12"], "--stage 12: expected 0 to 11"),
        (["--stop-stage=x"], "--stop_stage: invalid int value: 'x'"),
        (["--stage", "5", "--stop_stage", "3"], "--stop_stage 3: expected --stage (5)"),
        (["--preset=none"], "--preset none: conf/presets/whisper/none.sh not found"),
    ],
)
def test_wrong_usage_exits_with_2_and_says_what_is_wrong(arguments, message):
    result = run(*arguments)
    assert result.returncode == 2
    assert result.stdout == ""
    (line,) = result.stderr.strip().splitlines()
    assert line.startswith("run.sh: ") and message in line


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"langs": ""}, "--langs: found none"),
        ({"langs": "eng eng"}, "--langs: found eng eng, expected nothing twice"),
        ({"langs": "en", "prompts": "en=en"}, "--langs: found en, expected ISO 639-3"),
        ({"prompts": "eng"}, "--prompts: found 'eng', expected LANG=TOKEN"),
        ({"prompts": "eng=en cmn=zh"}, "--prompts: nothing for yue"),
        ({"systems": "frozen moe"}, "--systems: found 'moe', expected some of frozen"),
        ({"pack": "frozen"}, "--pack: found frozen, expected some of the systems"),
        (
            {"pack": "experts", "systems": "frozen mole"},
            "--pack: found experts, expected some of the systems",
        ),
        ({"systems": ""}, "--systems: found 'none'"),
        ({"nj": "0"}, "--nj: found 0, expected 1 or more"),
        ({"test_utts": "-1"}, "--test_utts: found -1, expected 0 or more"),
        ({"mole_config": "conf/no.yaml"}, "--mole_config: conf/no.yaml not found"),
        ({"shared_layers": "3 3"}, "--shared_layers: found 3 3, expected nothing tw"),
    ],
)
def test_options_that_contradict_are_refused_before_anything_runs(
    changes, message, tmp_path, monkeypatch
):
    from espnet2_lamer.bin.whisper_recipe import main
    from espnet2_lamer.errors import RecipeError

    monkeypatch.chdir(RECIPE)
    values = {"expdir": str(tmp_path / "exp")} | changes
    with pytest.raises(RecipeError, match=re.escape(message)):
        main([f"--{name}={value}" for name, value in values.items()])
    assert not (tmp_path / "exp").exists()


def test_a_value_of_the_wrong_kind_is_refused_by_the_program(tmp_path):
    result = run("--test_utts", "many", "--expdir", str(tmp_path / "exp"))
    assert result.returncode == 2
    assert "argument --test_utts: invalid int value: 'many'" in result.stderr
    assert not (tmp_path / "exp").exists()
