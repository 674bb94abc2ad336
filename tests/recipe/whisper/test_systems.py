"""Systems and stages of the Whisper recipe, without any model."""

from pathlib import Path

import pytest

from espnet2_lamer.recipe.whisper.stages import asr1
from espnet2_lamer.recipe.whisper.systems import CONFIG_OPTIONS, planned_systems
from tests.recipe.whisper.settings import make_options


def test_each_stage_reads_only_what_earlier_ones_make(tmp_path):
    options = make_options(tmp_path, hf_repo="somebody/model")
    assert [stage.number for stage in asr1] == list(range(12))
    made = {getattr(options, name) for name in (*CONFIG_OPTIONS, "decode_config")}
    for stage in asr1:
        assert all(hasattr(options, name) for name in stage.options), stage.title
        assert set(stage.inputs(options)) <= made, stage.title
        outputs = stage.outputs(options)
        assert not made & set(outputs), f"{stage.title} writes what another one made"
        made |= set(outputs)


def test_several_depths_and_ranks_give_a_system_each(tmp_path):
    options = make_options(
        tmp_path,
        systems=["mole", "kd_output", "frozen"],
        shared_layers=[3, 4],
        student_rank=[128, 256],
    )
    assert [(s.name, s.shared_layers, s.rank) for s in planned_systems(options)] == [
        ("frozen", None, None),
        ("mole_l3", 3, None),
        ("mole_l4", 4, None),
        ("kd_output_r128", None, 128),
        ("kd_output_r256", None, 256),
    ]


def test_only_a_mixture_and_the_baselines_are_decoded_both_ways(tmp_path):
    runs = [run for s in planned_systems(make_options(tmp_path)) for run in s.runs()]
    assert runs == [
        *("frozen_aware", "frozen_agnostic"),
        *("multilingual_aware", "multilingual_agnostic"),
        *("full_aware", "full_agnostic", "experts"),
        *("mole_aware", "mole_agnostic", "kd_none", "kd_output", "kd_layerwise"),
    ]


@pytest.mark.parametrize(
    ("systems", "idle"),
    [(["frozen"], {3, 4, 5, 6}), (["multilingual"], {3, 5, 6}), (["mole"], {4, 6})],
)
def test_stages_of_systems_that_are_not_asked_for_read_and_make_nothing(
    tmp_path, systems, idle
):
    options = make_options(tmp_path, systems=systems)
    for stage in asr1:
        if 3 <= stage.number < 7:
            files = stage.inputs(options) + stage.outputs(options)
            assert bool(files) is (stage.number not in idle), stage.title


def test_another_language_leaves_the_files_of_the_first_experts_alone(tmp_path):
    before = asr1["experts"].outputs(make_options(tmp_path, langs=["eng", "cmn"]))
    after = asr1["experts"].outputs(make_options(tmp_path))
    assert set(before) <= set(after)
    assert {path.parent.name for path in set(after) - set(before)} == {"yue"}


def test_every_preset_names_configs_that_exist():
    conf = Path(__file__).parents[3] / "conf"
    for preset in sorted((conf / "presets" / "whisper").glob("*.sh")):
        names = [
            line.partition("=")[2]
            for line in preset.read_text().splitlines()
            if "_config=" in line
        ]
        assert len(names) == len(CONFIG_OPTIONS) + 1, preset
        for name in names:
            assert (conf.parent / name).is_file(), name
