"""Two ranks with unequal utterances train as one process on all of them does."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
CASES = [
    "loss",
    "mean",
    "importance",
    "bias",
    "unmasked",
    "full",
    "no masked frame on one rank",
    "checkpointing",
]


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    """Run every case in one set of processes."""
    directory = tmp_path_factory.mktemp("ddp")
    result = subprocess.run(
        [sys.executable, "-m", "tests.hubert.ddp_worker", directory],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert result.returncode == 0, result.stderr[-3000:]
    return json.loads(result.stdout.splitlines()[-1])


@pytest.mark.parametrize("case", CASES)
def test_two_ranks_equal_one_process_on_the_global_batch(report, case):
    found = report[case]
    one, two = found["losses"]
    assert len(one) == 3 and len(set(one)) == 3
    assert two == pytest.approx(one, rel=1e-5)
    # Gradients of the third update and balance buffers, after two shared updates.
    assert found["gradient"] > 1e-2
    assert found["difference"] < 1e-5 * max(1.0, found["gradient"])


@pytest.mark.parametrize("case", CASES)
def test_reported_figures_are_those_of_the_global_batch(report, case):
    one, two = report[case]["figures"]
    assert two == pytest.approx(one, rel=1e-4, abs=1e-5)
    lamer = case not in ("full", "unmasked")
    assert ("routing_entropy_masked" in one) is lamer


def test_no_case_is_left_out(report):
    assert sorted(report) == sorted(CASES)
