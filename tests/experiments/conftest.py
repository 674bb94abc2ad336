"""A tiny definition whose cells only do arithmetic."""

import textwrap
from types import SimpleNamespace

import numpy as np
import pytest

from espnet2_lamer.experiments.cells import plan_cells
from espnet2_lamer.experiments.definition import read_definition
from espnet2_lamer.experiments.matrix import Matrix, Store
from espnet2_lamer.experiments.measures import CellMeasure, rate

DEFINITION = """
title: Small
source: nobody
seeds: [0, 1, 2]
minutes: 3
baseline: good
data: {preset: tiny}
configs:
    ssl_config:
        file: ssl.yaml
        change: {max_epoch: 2}
systems:
    good: {description: the good one}
    bad:
        configs: {ssl_config: {change: {encoder_conf: {lamer: {rank: 1}}}}}
claims:
    -   {text: bad is worse, system: bad, measure: ASR error eng, expect: worse}
"""


def fake_measures(system, seed, shift=10):
    """Errors of 8 utterances: each system its level, each seed its offset."""
    rng = np.random.default_rng([7, seed])
    errors = {"good": 10, "bad": 10 + shift}.get(system, 5) + rng.integers(0, 5, 8)
    parts = {f"u{i}": (int(e), 50) for i, e in enumerate(errors)}
    cka = CellMeasure("CKA to base", 0.5, "eng")
    return [rate("ASR error", "eng", parts), cka]


@pytest.fixture
def small(tmp_path):
    """Recipe directory, and functions to change and run the definition."""
    recipe = tmp_path / "recipe"
    recipe.mkdir()
    (recipe / "ssl.yaml").write_text(
        "encoder_conf: {lamer: {rank: 12}}\nmax_epoch: 9\n"
    )
    path = tmp_path / "small.yaml"
    path.write_text(textwrap.dedent(DEFINITION))
    ran, made, broken = [], [], {}

    def run_cell(cell, lock):
        ran.append((cell.system, cell.seed))
        if (cell.system, cell.seed) in broken:
            raise broken[cell.system, cell.seed]
        return fake_measures(cell.system, cell.seed)

    def matrix(**about):
        definition = read_definition(path)
        cells = plan_cells(definition, recipe)
        store = Store(tmp_path / "exp")
        return Matrix(
            definition,
            cells,
            store,
            lambda d, lock: made.append(d.key) or (),
            run_cell,
            about,
        )

    def change(old, new):
        text = path.read_text()
        assert old in text
        path.write_text(text.replace(old, new))

    return SimpleNamespace(
        recipe=recipe,
        path=path,
        ran=ran,
        made=made,
        broken=broken,
        matrix=matrix,
        change=change,
        root=tmp_path / "exp",
    )
