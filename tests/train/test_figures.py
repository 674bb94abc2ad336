"""A short training gives the figures that it gave, whatever the versions of others."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from espnet2_lamer.train.monitor import read_curves
from tests.train import small_training as training

FIGURES = Path(__file__).parents[1] / "fixtures" / "small_training.json"


def test_a_training_gives_the_figures_that_it_gave(tmp_path):
    # Equal to the last digit with torch 2.11 on Python 3.11 and with torch 2.14 on 3.12
    # and 3.13 when they were written; another CPU rounds otherwise.
    training.make_corpus(tmp_path / "corpus")
    options = training.command(tmp_path / "corpus", tmp_path / "exp", amp_dtype="none")
    # A process of its own, with one thread as the figures had.
    done = subprocess.run(
        [sys.executable, "-m", "espnet2_lamer.bin.hubert_train", *options],
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    found, expected = read_curves(tmp_path / "exp"), json.loads(FIGURES.read_text())
    assert len(found) == len(expected)
    for row, figures in zip(found, expected, strict=True):
        assert row["phase"] == figures.pop("phase")
        assert {name: row[name] for name in figures} == pytest.approx(figures, rel=1e-4)
