"""The command line local/data.py mini."""

import subprocess
import sys
from pathlib import Path

_SCRIPT = Path(__file__).parents[2] / "local/data.py"


def _run(*args):
    return subprocess.run(
        [sys.executable, str(_SCRIPT), "mini", *args],
        capture_output=True,
        text=True,
        cwd=_SCRIPT.parents[1],
    )


def test_help_shows_the_options_with_defaults():
    result = _run("--help")
    assert result.returncode == 0
    for option in ("--output", "--stage0", "--nj", "--seed", "(default: data)"):
        assert option in result.stdout


def test_an_unknown_option_is_wrong_usage():
    result = _run("--minute", "3")
    assert result.returncode == 2
    assert "--minute" in result.stderr
