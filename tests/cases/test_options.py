"""Cases from public reports: a switched teacher, and a README command that stopped."""

import os
import shlex
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
CASES = Path(os.environ.get("LAMER_CASES", ROOT.parent / "shared" / "cases"))
RECIPES = ROOT / "egs2" / "lamer_ssl"

pytestmark = pytest.mark.skipif(not CASES.is_dir(), reason="no folder of cases here")


def run(recipe, *words):
    """Run run.sh; returns its exit code and what it said."""
    done = subprocess.run(
        ["./run.sh", *words],
        cwd=RECIPES / recipe,
        capture_output=True,
        text=True,
        timeout=300,
    )
    return done.returncode, done.stderr


@pytest.fixture(scope="module")
def after_stage_0(tmp_path_factory):
    root = tmp_path_factory.mktemp("teacher_switch")
    places = [f"--{name}dir={root / name}" for name in ("exp", "dump", "data")]
    code, said = run("ssl1", *places, "--stop_stage", "0")
    assert code == 0, said
    return places


@pytest.mark.parametrize(
    ("option", "value"),
    [("teacher", "/nonexistent"), ("teacher", "mini/base"), ("base", "mini/teacher")],
)
def test_teacher_switch(after_stage_0, option, value):
    more = ["--stage=3", "--stop_stage=5", "--teacher_layer=1", f"--{option}={value}"]
    code, said = run("ssl1", *after_stage_0, *more)
    assert code == 1
    assert f"--{option}: found {value}, but stage 0" in said
    (apply, *_) = (x for x in said.splitlines() if x.startswith("./run.sh"))
    words = shlex.split(apply)
    assert words[words.index(f"--{option}") + 1] == value
    assert words[words.index("--stage") + 1] == "0"


def test_asr1_readme_command(tmp_path):
    text = (CASES / "asr1_readme_command" / "cmd.sh").read_text()
    words = shlex.split(text)[1:] + [f"--expdir={tmp_path / 'exp'}"]
    code, said = run("asr1", *words, "--print_commands", "true")
    assert code == 0, said
    assert "--pack: experts mole kd_layerwise of the preset gives way" in said
