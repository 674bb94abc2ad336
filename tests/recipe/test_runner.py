"""Stages run once, go on after a kill, and say what changed and who makes what."""

import dataclasses
import json
import logging

import pytest

from espnet2_lamer.errors import RecipeError
from espnet2_lamer.recipe.options import Options
from espnet2_lamer.recipe.runner import HashCache, Runner
from espnet2_lamer.recipe.stage import Stage


def make_options(root, **changes):
    """Options of which only what the runner and the stages below read is real."""
    values = {field.name: None for field in dataclasses.fields(Options)}
    values |= {
        "stage": 0,
        "stop_stage": 14,
        "skip_stages": [],
        **{name: root / name[:-3] for name in ("expdir", "dumpdir", "datadir")},
        "seed": 0,
        "new_langs": ["cmn", "yue"],
        "base": "one",
    }
    return Options(**values | changes)


class Recipe:
    """Three stages: ``a.txt`` -> ``b.txt`` -> ``exp/model/c.txt``; counts its runs."""

    def __init__(self, root):
        self.root = root
        self.ran = []
        self.fail = {}
        (root / "a.txt").write_text("a")
        self.paths = {n: root / f"{n}.txt" for n in "abc"}
        self.paths["c"] = root / "exp" / "model" / "c.txt"

    def stage(self, number, title, options, source, target, **more):
        def run(chosen):
            self.ran.append(number)
            logging.getLogger("espnet2_lamer.fake").info("stage %d at work", number)
            if number in self.fail:
                raise self.fail[number]
            path = self.paths[target]
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(f"{self.paths[source].read_text()}{target}{chosen.seed}")

        return Stage(
            number,
            title,
            title,
            options,
            run,
            inputs=lambda o: [self.paths[source]],
            outputs=lambda o: [self.paths[target]],
            **more,
        )

    def run(self, **changes):
        """Run, and return the numbers of the stages that did something."""
        nothing = Stage(0, "nothing", "nothing", "", lambda o: None)
        stages = [
            nothing,
            self.stage(1, "first", "seed new_langs", "a", "b"),
            self.stage(
                2,
                "second",
                "base",
                "b",
                "c",
                keep=lambda o: [o.expdir / "model"],
            ),
        ]
        self.ran.clear()
        Runner(stages, make_options(self.root, **changes)).run()
        return list(self.ran)

    def state(self, number):
        path = self.root / "exp" / "stages" / f"{number:02d}.json"
        return json.loads(path.read_text())


@pytest.fixture
def recipe(tmp_path, caplog):
    caplog.set_level(logging.INFO)
    return Recipe(tmp_path)


def test_a_stage_that_is_done_is_skipped_and_says_so(recipe, caplog):
    assert recipe.run() == [1, 2]
    caplog.clear()
    assert recipe.run() == []
    assert "stage 1: first: done, nothing changed" in caplog.text
    assert "stage 2: second: done, nothing changed" in caplog.text
    assert "total:" in caplog.text


def test_only_the_stages_asked_for_run(recipe):
    assert recipe.run(stop_stage=1) == [1]
    assert recipe.run(stage=2, skip_stages=[2]) == []
    assert recipe.run(stage=2) == [2]


def test_a_changed_option_reruns_the_stages_that_depend_on_it(recipe, caplog):
    recipe.run()
    assert recipe.run(base="two") == [2]
    assert "stage 2: second: runs again: --base one -> two" in caplog.text
    # The seed changes the first stage's output and so the second's input.
    assert recipe.run(base="two", seed=7) == [1, 2]
    assert "--seed 0 -> 7" in caplog.text
    assert f"stage 2: second: runs again: {recipe.paths['b']} changed" in caplog.text
    assert recipe.run(base="two", seed=7, ngpu=1) == []


def test_an_output_that_comes_out_the_same_stops_the_chain(recipe):
    recipe.run()
    assert recipe.run(new_langs=["cmn"]) == [1]


def test_a_changed_input_reruns_the_stage(recipe, caplog):
    recipe.run()
    recipe.paths["a"].write_text("other")
    assert recipe.run() == [1, 2]
    assert f"runs again: {recipe.paths['a']} changed" in caplog.text


def test_a_touched_but_equal_input_changes_nothing(recipe):
    recipe.run()
    recipe.paths["a"].write_text("a")
    assert recipe.run() == []


@pytest.mark.parametrize("damage", ["is gone", "changed"])
def test_an_output_that_is_damaged_or_gone_is_made_again(recipe, caplog, damage):
    recipe.run()
    if damage == "changed":
        recipe.paths["b"].write_text("half")
    else:
        recipe.paths["b"].unlink()
    assert recipe.run(stop_stage=1) == [1]
    assert f"stage 1: first: runs again: {recipe.paths['b']} {damage}" in caplog.text
    assert recipe.run() == []


def test_a_missing_input_names_the_stage_that_makes_it(recipe):
    with pytest.raises(RecipeError) as error:
        recipe.run(stage=2)
    message = str(error.value)
    assert f"stage 2 (second) needs {recipe.paths['b']}: file not found" in message
    assert "made by stage 1 (first): ./run.sh --stage 1 --stop_stage 1" in message
    assert recipe.ran == []
    assert not (recipe.root / "exp" / "stages" / "02.json").exists()


def test_a_file_that_a_stage_misses_on_its_way_names_the_stage_that_makes_it(recipe):
    recipe.fail[2] = RecipeError(f"{recipe.paths['b']}: file not found")
    with pytest.raises(RecipeError, match="not found; it is made by stage 1 .first."):
        recipe.run()


def test_a_missing_input_that_no_stage_makes_points_at_the_options(recipe):
    recipe.paths["a"].unlink()
    with pytest.raises(
        RecipeError, match=r"needs .*a.txt.*check the option that names"
    ):
        recipe.run()


@pytest.mark.parametrize(
    "error", [ValueError("boom"), RecipeError("bad"), KeyboardInterrupt()]
)
def test_a_stage_that_fails_is_not_done_and_goes_on_next_time(recipe, caplog, error):
    recipe.fail[1] = error
    with pytest.raises(type(error)):
        recipe.run()
    assert recipe.ran == [1]
    assert recipe.state(1)["status"] == "running"
    recipe.fail.clear()
    assert recipe.run() == [1, 2]
    assert "stage 1: first: goes on where it stopped" in caplog.text
    assert recipe.state(1)["status"] == "done"


def test_a_stage_without_its_output_is_not_done(recipe, monkeypatch):
    recipe.paths["a"].write_text("a")
    stage = dataclasses.replace(
        recipe.stage(0, "lazy", "", "a", "b"), run=lambda options: None
    )
    with pytest.raises(RecipeError, match=r"stage 0: lazy: ended without .*b.txt"):
        Runner([stage], make_options(recipe.root)).run()
    assert recipe.state(0)["status"] == "running"


def test_what_a_stage_made_with_other_inputs_is_put_aside(recipe, caplog):
    recipe.run()
    recipe.run(base="two")
    recipe.run(base="three")
    model = recipe.root / "exp" / "model"
    kept = sorted(p for p in model.parent.iterdir() if p.name.startswith("model.old-"))
    assert len(kept) == 2 and model.is_dir()
    assert all((path / "c.txt").read_text() == "ab0c0" for path in kept)
    assert "kept the earlier" in caplog.text
    # Back to the first options: a third one is kept beside the first two.
    recipe.run(base="one")
    recipe.run(base="two")
    assert len([p for p in model.parent.iterdir() if ".old-" in p.name]) == 4


def test_a_killed_stage_resumes_in_its_directory_and_others_inputs_put_it_aside(recipe):
    model = recipe.root / "exp" / "model"
    recipe.fail[2] = KeyboardInterrupt()
    with pytest.raises(KeyboardInterrupt):
        recipe.run()
    model.mkdir(parents=True)
    (model / "checkpoint").write_text("1")
    recipe.fail.clear()
    assert recipe.run() == [2]
    assert (model / "checkpoint").exists()
    assert recipe.run(base="two") == [2]
    assert not (model / "checkpoint").exists()
    (kept,) = (p for p in model.parent.iterdir() if p.name.startswith("model.old-"))
    assert (kept / "checkpoint").read_text() == "1"


def test_later_stages_whose_inputs_changed_are_named(recipe, caplog):
    recipe.run()
    caplog.clear()
    assert recipe.run(stop_stage=1, seed=5) == [1]
    (warning,) = (r for r in caplog.records if r.levelno == logging.WARNING)
    assert warning.getMessage() == (
        f"stage 2 (second) is out of date: its inputs changed: {recipe.paths['b']}"
    )
    caplog.clear()
    recipe.run(seed=5)
    assert "out of date" not in caplog.text


def test_a_later_stage_that_was_left_out_is_named_too(recipe, caplog):
    recipe.run()
    recipe.run(skip_stages=[2], seed=5)
    assert "stage 2 (second) is out of date" in caplog.text


def test_each_stage_writes_a_log(recipe):
    recipe.run()
    logs = recipe.root / "exp" / "logs"
    for number in (1, 2):
        text = (logs / f"stage_{number:02d}.log").read_text()
        assert f"stage {number} at work" in text
        assert f"stage {3 - number} at work" not in text
    recipe.run(seed=1)
    assert (logs / "stage_01.log").read_text().count("at work") == 2
    assert not any(
        isinstance(handler, logging.FileHandler)
        for handler in logging.getLogger().handlers
        if "exp/logs" in getattr(handler, "baseFilename", "")
    )


@pytest.mark.parametrize(
    ("error", "expected"),
    [(ValueError("boom"), "Traceback"), (RecipeError("no such codebook"), "codebook")],
)
def test_the_log_of_a_failed_stage_says_why(recipe, error, expected):
    recipe.fail[1] = error
    with pytest.raises(type(error)):
        recipe.run()
    text = (recipe.root / "exp" / "logs" / "stage_01.log").read_text()
    assert expected in text and str(error) in text


def test_seconds_of_the_stages_that_ran_are_shown(recipe, caplog):
    recipe.run(stop_stage=1)
    caplog.clear()
    recipe.run()
    lines = [r.getMessage() for r in caplog.records]
    assert any(line.startswith("stage  2:") and "second" in line for line in lines)
    assert not any(line.startswith("stage  1:") for line in lines)


def test_an_interrupted_record_is_taken_as_nothing_done(recipe):
    recipe.run()
    (recipe.root / "exp" / "stages" / "01.json").write_text('{"stage": 1, ')
    assert recipe.run() == [1]


def test_hashes_are_taken_again_only_when_a_file_changed(tmp_path, monkeypatch):
    from espnet2_lamer.recipe import runner

    calls = []
    real = runner.sha256_file
    monkeypatch.setattr(
        runner, "sha256_file", lambda path: calls.append(path) or real(path)
    )
    path = tmp_path / "file"
    path.write_text("one")
    cache = HashCache(tmp_path / "hashes.json")
    first = cache(path)
    assert cache(path) == first and len(calls) == 1
    cache.save()
    assert HashCache(tmp_path / "hashes.json")(path) == first and len(calls) == 1
    path.write_text("three")
    assert cache(path) != first and len(calls) == 2


def test_variants_of_a_stage_are_done_or_not_each_by_itself(recipe, caplog):
    def run(tag):
        stage = recipe.stage(
            2, "second", "base", "a", "c", variant=lambda o: f"_{o.ssl_tag}"
        )
        recipe.ran.clear()
        recipe.paths["c"] = recipe.root / "exp" / f"model_{tag}" / "c.txt"
        Runner([stage], make_options(recipe.root, base=tag, ssl_tag=tag)).run()
        return list(recipe.ran)

    assert run("one") == run("two") == [2]
    # Back to the first: it is still there and still done.
    assert run("one") == run("two") == []
    assert sorted(p.name for p in (recipe.root / "exp" / "stages").glob("02*")) == [
        "02_one.json",
        "02_two.json",
    ]
    assert "runs again" not in caplog.text


@pytest.mark.parametrize("ssl_tag", ["lamer", "milore"])
@pytest.mark.parametrize("control", [True, False])
def test_the_recipes_stages_read_only_what_earlier_ones_make(
    tmp_path, control, ssl_tag
):
    from espnet2_lamer.recipe.stages import ssl1

    assert [stage.number for stage in ssl1] == list(range(15))
    configs = {f"{kind}_config": tmp_path / f"{kind}.yaml" for kind in ("ssl", "asr")}
    options = make_options(
        tmp_path,
        datadir=tmp_path / "data",
        dumpdir=tmp_path / "dump",
        corpus="mini",
        benchmark="own",
        tracks=["asr", "lid"],
        tune=["head"],
        eval_corpora=[],
        upstream_mode=["eval"],
        budgets=["1h"],
        replay_langs=["eng"],
        control=control,
        ssl_tag=ssl_tag,
        upstreams=["random", "base", "lamer"],
        spread=[],
        units={"eng": "char", "cmn": "pinyin", "yue": "jyutping"},
        lid_config=tmp_path / "lid.yaml",
        hf_repo="somebody/model",
        **configs,
    )
    made = {*configs.values(), options.lid_config}
    for stage in ssl1:
        assert all(hasattr(options, name) for name in stage.options), stage.title
        inputs = {path for path in stage.inputs(options) if path.is_absolute()}
        assert inputs <= made, stage.title
        outputs = stage.outputs(options)
        assert not made & set(outputs), f"{stage.title} writes what another one made"
        made |= set(outputs)


def test_inputs_that_an_older_record_lacks_are_filled_in_and_then_watched(
    tmp_path, caplog
):
    caplog.set_level("INFO")
    recipe, text = Recipe(tmp_path), tmp_path / "text"
    stage = recipe.stage(0, "sets", "", "a", "b")
    later = tmp_path / "later"
    watched = dataclasses.replace(stage, added=lambda o: [text, later])
    options = make_options(tmp_path)
    text.write_text("one")
    Runner([stage], options).run()
    Runner([watched], options).run()
    assert recipe.ran == [0] and "done, nothing changed" in caplog.text
    text.write_text("another")
    Runner([watched], options).run()
    assert recipe.ran == [0, 0] and f"runs again: {text} changed" in caplog.text
    # Of a record that has some, others are news.
    later.write_text("x")
    Runner([watched], options).run()
    assert recipe.ran == [0, 0, 0]
