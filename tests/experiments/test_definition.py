"""Definitions: what is read, merged, shared, and refused."""

import shutil
from pathlib import Path

import pytest

from espnet2_lamer.errors import RecipeError
from espnet2_lamer.experiments.cells import place, plan_cells
from espnet2_lamer.experiments.definition import merge, read_definition
from tests.export.tiny import write_base

ROOT = Path(__file__).parents[2]
COMMITTED = [
    path
    for path in sorted((ROOT / "conf" / "experiments").glob("*.yaml"))
    if path.name != "mini.yaml"
]


def cells_of(small):
    return {
        (c.system, c.seed): c
        for c in plan_cells(read_definition(small.path), small.recipe)
    }


def test_mappings_merge_and_all_else_replaces():
    base = {"a": {"b": 1, "c": [1, 2]}, "d": {"e": 1}}
    change = {"a": {"c": [3]}, "d": None, "f": 0}
    assert merge(base, change) == {"a": {"b": 1, "c": [3]}, "d": None, "f": 0}
    assert base == {"a": {"b": 1, "c": [1, 2]}, "d": {"e": 1}}


def test_a_cell_has_the_config_file_with_all_changes_on_top(small):
    cells = cells_of(small)
    assert cells["good", 1].configs == {
        "ssl_config": {"encoder_conf": {"lamer": {"rank": 12}}, "max_epoch": 2}
    }
    assert cells["bad", 1].configs["ssl_config"]["encoder_conf"]["lamer"]["rank"] == 1


def test_seeds_come_one_after_the_other_and_share_their_data(small):
    cells = list(cells_of(small))
    assert cells[:3] == [("good", 0), ("bad", 0), ("good", 1)]
    assert len({c.data.key for c in cells_of(small).values()}) == 1
    assert len({c.key for c in cells_of(small).values()}) == 6


def test_the_same_training_is_the_same_cell_whatever_its_names(small):
    before = {c.key for c in cells_of(small).values()}
    small.change("    good: {description: the good one}", "    fine: {}")
    small.change("baseline: good", "baseline: fine")
    small.change("title: Small", "title: Other")
    assert {c.key for c in cells_of(small).values()} == before


def test_only_cells_that_a_change_concerns_get_another_key(small):
    before = cells_of(small)
    small.change("rank: 1}", "rank: 2}")
    after = cells_of(small)
    same = {name for name in before if before[name].key == after[name].key}
    assert same == {("good", seed) for seed in range(3)}
    (small.recipe / "ssl.yaml").write_text("encoder_conf: {}\nnew: 1\n")
    assert not {c.key for c in cells_of(small).values()} & {
        c.key for c in after.values()
    }


def test_an_environment_makes_another_cell_on_the_same_data(small):
    before = cells_of(small)
    small.change("    bad:\n", "    bad:\n        environment: {OMP_NUM_THREADS: 2}\n")
    after = cells_of(small)
    assert after["good", 1].key == before["good", 1].key
    assert after["bad", 1].key != before["bad", 1].key
    assert after["bad", 1].environment == {"OMP_NUM_THREADS": "2"}
    assert after["bad", 1].data.key == before["good", 1].data.key
    small.change("baseline: good", "baseline: good\nenvironment: {A: b}")
    assert cells_of(small)["bad", 1].environment == {"A": "b", "OMP_NUM_THREADS": "2"}


def test_a_preset_is_its_options_but_those_of_pages(small):
    presets = small.recipe / "conf" / "presets"
    presets.mkdir(parents=True)

    def keys(text):
        (presets / "tiny.sh").write_text(text)
        return {c.key for c in cells_of(small).values()}

    before = keys("teacher_layer=3\n")
    assert keys("# A remark.\nteacher_layer=3\nspread='a.csv b.csv'\n") == before
    assert not keys("teacher_layer=4\n") & before


def test_a_manifest_is_what_it_says_and_not_where_it_lies(small, tmp_path):
    def keys(manifest):
        definition = read_definition(small.path, {"manifest": str(manifest)})
        return {c.key for c in plan_cells(definition, small.recipe)}

    first, second = small.recipe / "first.tsv", tmp_path / "second.tsv"
    first.write_text("utt_id\tpath\tlang\n")
    second.write_bytes(first.read_bytes())
    before = keys("first.tsv")
    assert keys(second) == keys(first) == before
    first.write_text("utt_id\tpath\tlang\nu\tu.wav\teng\n")
    assert not keys(first) & before
    assert keys(small.recipe) != keys(tmp_path)


@pytest.mark.parametrize("name", ["base", "teacher"])
def test_a_checkpoint_is_its_weights_and_not_where_they_lie(small, tmp_path, name):
    def keys(checkpoint):
        definition = read_definition(small.path, {name: str(checkpoint)})
        return {c.key for c in plan_cells(definition, small.recipe)}

    first, second = small.recipe / "first", tmp_path / "second"
    write_base(first)
    shutil.copytree(first, second)
    before = keys("first")
    assert keys(second) == keys(first) == before
    shutil.rmtree(first)
    write_base(first, seed=1)
    assert not keys(first) & before
    assert not keys("facebook/hubert-large-ll60k") & before


def test_a_reference_is_a_cell_of_the_same_seed_and_comes_after_it(small):
    small.change(
        "    bad:\n", "    bad:\n        data: {teacher: '{cell:good}/ssl_lamer'}\n"
    )
    cells = cells_of(small)
    order = list(cells)
    for seed in range(3):
        good, bad = cells["good", seed], cells["bad", seed]
        assert bad.data.needs == (good.key,)
        assert order.index(("good", seed)) < order.index(("bad", seed))
        assert place(bad.data.options, lambda key: f"/x/{key}")["teacher"] == (
            f"/x/{good.key}/ssl_lamer"
        )
    assert len({cells["bad", seed].data.key for seed in range(3)}) == 3


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("title: Small", "titel: Small", "titel: unknown key"),
        ("baseline: good", "baseline: none", "baseline: found 'none', expected one of"),
        ("seeds: [0, 1, 2]", "seeds: [0, 0]", "seeds: found"),
        ("ssl_config:\n        file", "ssl:\n        file", "configs.ssl: found"),
        ("file: ssl.yaml", "file: gone.yaml", "gone.yaml: cannot be read"),
        (
            "data: {preset",
            "cell: {seed: 1}\ndata: {preset",
            "cell.seed: this option is",
        ),
        ("{preset", "{'python=x': y, preset", "data.python=x: unknown option"),
        ("{preset", "{trust_s3prl_files: true, preset", "set by the tool"),
        (
            "data: {preset",
            "cell: {n_clusters: 5}\ndata: {preset",
            "state it under data",
        ),
        (
            "    bad:\n",
            "    bad:\n        cell: {ssl_tag: '{cell:bad}'}\n",
            "reads itself",
        ),
        (
            "    bad:\n",
            "    bad:\n        cell: {ssl_tag: '{cell:no}'}\n",
            "no system of this",
        ),
        ("expect: worse", "expect: nice", "claims: found"),
        ("ASR error eng", "CKA to base eng", "expect: found worse, expected higher"),
        ("system: bad", "system: ugly", "claims: found 'ugly'"),
    ],
)
def test_a_wrong_definition_is_refused_by_name(small, old, new, message):
    small.change(old, new)
    with pytest.raises(RecipeError, match="small") as caught:
        cells_of(small)
    assert message in str(caught.value)


@pytest.mark.parametrize("path", COMMITTED, ids=lambda p: p.stem)
def test_committed_definitions_can_be_planned_and_name_their_command(path):
    definition = read_definition(path)
    cells = plan_cells(definition, ROOT / "egs2" / "lamer_ssl" / "ssl1")
    assert f"conf/experiments/{path.name}" in path.read_text(encoding="utf-8")
    assert len({c.key for c in cells}) == len(cells), "two rows are the same training"
    from espnet2_lamer.bin.recipe import get_parser

    known = {action.dest for action in get_parser()._actions}
    for cell in cells:
        assert set(cell.options) <= known


@pytest.mark.slow
@pytest.mark.parametrize("path", COMMITTED, ids=lambda p: p.stem)
def test_committed_trainings_have_options_that_espnet_takes(path, tmp_path):
    import yaml

    from espnet2_lamer.tasks.hubert import LamerHubertTask
    from espnet2_lamer.tasks.option_check import check_options

    parser = LamerHubertTask.get_parser()
    cells = plan_cells(read_definition(path), ROOT / "egs2" / "lamer_ssl" / "ssl1")
    for content in {str(c.configs["ssl_config"]): c for c in cells}.values():
        file = tmp_path / "ssl.yaml"
        file.write_text(yaml.safe_dump(content.configs["ssl_config"]))
        options = ["--config", str(file), "--num_classes", "100"]
        check_options(parser, parser.parse_args(options))


def test_the_paper_questions_have_enough_seeds():
    seeds = {p.stem: read_definition(p).seeds for p in COMMITTED}
    # A search says where to look, and nothing of systems.
    assert all(len(seeds.pop(name)) == 1 for name in ("regime", "regime_human"))
    assert len(seeds["replay"]) >= 5
    assert all(len(s) >= 3 for s in seeds.values())
