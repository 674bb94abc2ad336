"""Merged experts, and a rank per layer, through every file that a training leaves."""

import pytest

import espnet2_lamer
from espnet2_lamer.tasks.pretrained import as_upstream
from tests.export.tiny import same, states_of, write_base, write_experiment
from tests.tiny_hubert import MERGED


@pytest.mark.parametrize(
    "lamer", [MERGED, {"rank": "1,3", "alpha": 2.0}], ids=["merged", "ranks"]
)
def test_states_are_equal_to_the_bit_through_zoo_and_adapter(tmp_path, lamer):
    from espnet2_lamer.bin.export import main

    espnet2_lamer.register()
    base = write_base(tmp_path / "base")
    experiment = tmp_path / "ssl"
    expected = states_of(as_upstream(write_experiment(experiment, base, **lamer)))
    assert same(states_of(espnet2_lamer.load_model(experiment)), expected)
    for kind, name in (("zoo", "model.zip"), ("adapter", "model.safetensors")):
        options = [f"--kind={kind}", "--task=ssl", f"--experiment={experiment}"]
        main([*options, f"--output={tmp_path / name}"])
        given = base if kind == "adapter" else None
        model = espnet2_lamer.load_model(tmp_path / name, base=given)
        assert same(states_of(model), expected), kind
        assert ("merged to one" in model.summary) == ("merge" in lamer)
