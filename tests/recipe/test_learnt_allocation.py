"""--allocation learnt: a trial, the budget it is spent on, and the record of both."""

import json
from types import SimpleNamespace

import pytest
import yaml

from espnet2_lamer.errors import RecipeError
from espnet2_lamer.layers import parse_ranks
from espnet2_lamer.recipe import learnt_allocation as module
from espnet2_lamer.recipe.learnt_allocation import (
    layer_measures,
    learnt_allocation,
    plan_trial,
    spend,
)
from espnet2_lamer.recipe.schedule import trial_schedule

LAYERS = 4


def scores(importance, ranks, count=10, rank=12):
    """Every layer's importance, spread evenly over so many components."""
    return [
        {
            "intermediate_dense": [
                [total / count / wanted if i < wanted else 0.0 for i in range(rank)]
                for _ in range(count)
            ]
        }
        for total, wanted in zip(importance, ranks, strict=True)
    ]


def components(found):
    """N r of every layer, added up."""
    return sum(n * r for n, r in zip(found["allocation"], found["rank"], strict=True))


@pytest.fixture
def options(tmp_path, monkeypatch):
    """A recipe whose trial only notes how it was called."""
    raw = tmp_path / "raw"
    (raw / "ssl_train").mkdir(parents=True)
    (raw / "ssl_train" / "text.km.json").write_text("{}")
    config = tmp_path / "ssl.yaml"
    lamer = {"allocation": "2,4,6,8", "rank": 12, "top_k": 2}
    config.write_text(yaml.safe_dump({"encoder_conf": {"lamer": lamer}, "a": 1}))
    monkeypatch.setattr(module, "base_path", lambda o: "the/base")
    monkeypatch.setattr(
        module, "read_architecture", lambda source: {"encoder_num_layers": LAYERS}
    )
    monkeypatch.setattr(
        module, "read_checkpoints", lambda o: {"base": {"sha256": o.base_sha}}
    )
    monkeypatch.setattr(module, "ssl_audio", lambda o: [])
    monkeypatch.setattr(module, "audio_digest", lambda tables: "0a")
    monkeypatch.setattr(module, "score_experts", lambda *given: scores(*MEASURED))
    return SimpleNamespace(
        raw=raw,
        seed=3,
        num_nodes=1,
        base_sha="ff",
        ssl_config=config,
        ssl_experiment=tmp_path / "exp" / "ssl_lamer_learnt",
        trials=[],
    )


MEASURED = [1.0, 3.0, 0.0, 8.0], [12, 3, 1, 6]


def run(options, updates=400):
    def train(experiment, experts, more):
        options.trials.append((experiment, experts, more))
        assert not (experiment / "train.log").exists(), "another trial's"
        (experiment / "checkpoints").mkdir()
        for name in ("valid.loss_m.best.pth", "1epoch.pth.sha256", "train.log"):
            (experiment / name).write_text("")

    return learnt_allocation(options, updates, train)


def record(options):
    return json.loads((options.ssl_experiment / "allocation.json").read_text())


def test_the_budget_of_the_config_is_spent_by_importance_and_effective_rank(options):
    words = run(options)
    found = record(options)
    # 20 experts: two in each layer, 12 more in the ratio 1 : 3 : 0 : 8.
    assert found["allocation"] == [3, 5, 2, 10]
    assert sum(found["allocation"]) == found["budget"] == 20
    assert found["importance_per_layer"] == pytest.approx(MEASURED[0])
    # A layer without importance has no component that counts: one.
    assert found["effective_rank_per_layer"] == pytest.approx([12, 3, 1, 6])
    assert found["budget_components"] == 20 * 12
    used = components(found)
    assert found["components"] == used
    assert 240 - min(found["allocation"]) < used <= 240
    assert sorted(found["rank"]) == [found["rank"][k] for k in (2, 1, 3, 0)]
    assert words == [
        *("--encoder_conf", "lamer.allocation=3,5,2,10"),
        *("--encoder_conf", f"lamer.rank={','.join(map(str, found['rank']))}"),
    ]
    assert found["importance"] == scores(*MEASURED)
    assert "AdaLoRA" in found["criterion"]


def test_the_trial_has_twice_the_experts_a_tenth_of_the_updates_and_no_weights_left(
    options,
):
    run(options, updates=4000)
    ((experiment, experts, more),) = options.trials
    assert experiment == options.ssl_experiment / "trial"
    expected = ["lamer.allocation=10", "lamer.rank=12"]
    assert [word for word in experts if word[:2] != "--"] == expected
    given = dict(zip(more[::2], more[1::2], strict=True))
    assert given["--max_epoch"] == "1" and given["--num_iters_per_epoch"] == "400"
    assert "total_steps=400" in more and "warmup_steps=32" in more
    left = sorted(path.name for path in experiment.iterdir())
    assert left == ["inputs.json", "train.log"]
    found = record(options)
    assert (found["trial_allocation"], found["trial_rank"]) == (10, 12)
    assert found["inputs"]["trial_updates"] == 400
    assert found["inputs"]["seed"] == 3


def test_the_trials_length_has_bounds():
    lengths = [trial_schedule(n).updates for n in (0, 400, 5000, 400_000)]
    assert lengths == [100, 100, 500, 2000]


def test_a_second_run_reads_the_record_and_another_config_or_base_learns_anew(options):
    first = run(options)
    assert run(options) == first and len(options.trials) == 1
    for change in ("config", "base", "seed"):
        if change == "config":
            config = yaml.safe_load(options.ssl_config.read_text())
            options.ssl_config.write_text(yaml.safe_dump(config | {"a": 2}))
        elif change == "base":
            options.base_sha = "ee"
        else:
            options.seed = 4
        count = len(options.trials)
        run(options)
        assert len(options.trials) == count + 1, change
    # What changes only how fast a training is changes nothing here.
    config = yaml.safe_load(options.ssl_config.read_text())
    options.ssl_config.write_text(yaml.safe_dump(config | {"feature_cache_gb": 1}))
    run(options)
    assert len(options.trials) == 4


def test_soft_routing_and_merged_experts_need_one_expert_a_layer():
    lamer = {"allocation": 5, "rank": "4,8", "top_k": None, "balance": "none"}
    for merge in ("none", "utterance"):
        plan = plan_trial(lamer | {"merge": merge}, LAYERS)
        assert (plan["minimum"], plan["budget"]) == (1, 20)
        assert (plan["trial_allocation"], plan["trial_rank"]) == (10, 8)
        assert plan["budget_components"] == 5 * (4 + 4 + 8 + 8)
        found = spend(plan, scores([0.0, 0.0, 0.0, 2.0], [1, 1, 1, 8]))
        assert found["allocation"] == [1, 1, 1, 17]
        assert parse_ranks(found["rank"], LAYERS) == found["rank"]
        assert components(found) <= 120


def test_targets_are_added_up_and_their_ranks_weighed():
    (one,) = scores([3.0], [12])
    (two,) = scores([1.0], [2])
    both = one | {"output_dense": two["intermediate_dense"]}
    importance, ranks = layer_measures([both])
    assert importance == pytest.approx([4.0])
    assert ranks == pytest.approx([(3 * 12 + 1 * 2) / 4])


def test_what_cannot_be_learnt_is_refused(options, monkeypatch):
    options.num_nodes = 2
    with pytest.raises(RecipeError, match="found --num_nodes 2, expected 1 .*--sanity"):
        run(options)
    options.num_nodes = 1
    config = yaml.safe_load(options.ssl_config.read_text())
    options.ssl_config.write_text(yaml.safe_dump(config | {"expand_from": "exp/x"}))
    with pytest.raises(RecipeError, match="expand_from: found exp/x"):
        run(options)
    config["encoder_conf"]["lamer"]["allocation"] = 1
    options.ssl_config.write_text(yaml.safe_dump(config))
    with pytest.raises(RecipeError, match="found 4 experts for 4 layers, expected at"):
        run(options)
    assert not (options.ssl_experiment / "allocation.json").exists()


def test_a_trial_that_was_killed_goes_on_and_is_not_taken_for_another(options):
    def killed(experiment, experts, more):
        (experiment / "half").write_text("")
        raise KeyboardInterrupt

    trial = options.ssl_experiment / "trial"
    with pytest.raises(KeyboardInterrupt):
        learnt_allocation(options, 400, killed)
    run(options)
    assert (trial / "half").exists()
    (options.ssl_experiment / "allocation.json").unlink()
    options.seed = 4
    run(options)
    assert not (trial / "half").exists()
