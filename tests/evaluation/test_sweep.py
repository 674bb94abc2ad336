"""The learning rate of a head is chosen by its dev loss."""

import json
from dataclasses import replace

import pytest

from espnet2_lamer.errors import RecipeError
from espnet2_lamer.evaluation.runs import Run, choose_rates

RUN = Run(
    track="asr",
    benchmark="own",
    budget="all",
    corpus="",
    langs=("eng",),
    unit="char",
    system="base",
    upstream="base",
    layer=3,
    config="conf/head.yaml",
    train_sets=("asr_eng_train",),
    dev_sets=("asr_eng_dev",),
    tests={"eng": ("asr_eng_test",)},
)


def trained(expdir, loss, **changes):
    run = replace(RUN, **changes)
    run.directory(expdir).mkdir(parents=True)
    path = run.directory(expdir) / "training.json"
    path.write_text(json.dumps({"valid_loss": loss}))
    return run


def test_the_rate_with_the_lowest_mean_dev_loss_over_seeds_is_kept(tmp_path):
    # The single best run is at 1e-3, the best mean at 1e-4.
    runs = [
        trained(tmp_path, loss, learning_rate=rate, seed=seed)
        for rate, losses in ((1e-3, (1.0, 5.0)), (1e-4, (2.0, 2.5)))
        for seed, loss in enumerate(losses)
    ]
    other = trained(tmp_path, 9.0, system="lamer", learning_rate=1e-3)
    chosen, rates = choose_rates([*runs, other], tmp_path)
    assert chosen == [runs[2], runs[3], other]
    assert {(r.learning_rate, r.dev_loss, r.chosen) for r in rates} == {
        (1e-3, 3.0, False),
        (1e-4, 2.25, True),
    }
    assert {r.head for r in rates} == {RUN.head}


def test_one_rate_needs_no_dev_loss_and_makes_no_table(tmp_path):
    assert choose_rates([RUN], tmp_path) == ([RUN], [])


def test_an_untrained_run_of_a_sweep_is_named(tmp_path):
    runs = [trained(tmp_path, 1.0, learning_rate=1e-3), RUN]
    with pytest.raises(RecipeError, match=f"{RUN.name}/training.json: no dev"):
        choose_rates(runs, tmp_path)
