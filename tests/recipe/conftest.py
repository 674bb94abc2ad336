"""Options for tests of what an evaluation plans."""

import functools

import pytest

from espnet2_lamer.recipe import upstreams
from tests.recipe.evaluation_options import CONF, options_of


@pytest.fixture
def make(tmp_path, monkeypatch):
    """Make options whose directories are the test's."""
    monkeypatch.setattr(upstreams, "CONFIGS", CONF / "upstreams")
    return functools.partial(options_of, tmp_path)
