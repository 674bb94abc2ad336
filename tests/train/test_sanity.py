"""``--sanity true``: a model that can learn one batch passes, one that cannot fails."""

import json
import logging

import pytest

from espnet2_lamer.errors import RecipeError
from espnet2_lamer.tasks.hubert import LamerHubertTask
from espnet2_lamer.train.trial import ACCURACY, ENTROPY_SHARE, Sanity, overfit
from tests.train.small_training import CONFIG, command

# Everything trains on some frames of one utterance: a second suffices.
EASY = {
    "encoder_conf": {
        **CONFIG["encoder_conf"],
        "lamer": None,
        "mask_prob": 0.3,
        "encoder_dropout": 0.0,
        "encoder_ff_interm_dropout": 0.0,
    },
    "batch_bins": 8000,
    "optim_conf": {"lr": 0.02},
    "sanity_updates": 300,
}


@pytest.fixture
def run(corpus, tmp_path):
    """Run the command line with ``--sanity true``; the experiment's directory."""

    def run(corpus=corpus, **changes):
        options = command(corpus, tmp_path / "exp", **{**EASY, **changes})
        LamerHubertTask.main(cmd=[*options, "--sanity", "true"])
        return tmp_path / "exp"

    return run


def test_a_batch_that_can_be_learnt_is_said_to_be_and_nothing_else_is_written(
    run, caplog
):
    caplog.set_level(logging.INFO)
    output = run()
    assert sorted(path.name for path in output.iterdir()) == [
        "sanity.json",
        "train.yaml",
    ]
    found = json.loads((output / "sanity.json").read_text())
    assert found["passed"] is True
    assert found["final_bits"] < found["initial_bits"]
    assert (
        found["final_bits"] < ENTROPY_SHARE * found["unigram_bits"]
        or found["final_accuracy"] > ACCURACY
    )
    assert 0 < found["updates"] <= 300
    assert "sanity: one batch could be learnt" in caplog.text


def test_a_batch_that_is_not_learnt_is_an_error_that_says_where_to_look(run, tmp_path):
    with pytest.raises(RecipeError, match="could not be learnt .*optim_conf.lr"):
        run(optim_conf={"lr": 0.0}, sanity_updates=10)
    found = json.loads((tmp_path / "exp" / "sanity.json").read_text())
    assert found["passed"] is False and found["updates"] == 10
    assert found["final_bits"] == found["initial_bits"]


def test_the_exit_code_says_it_too(corpus, tmp_path, monkeypatch):
    from espnet2_lamer.bin import common, hubert_train

    for rate, code in ((0.0, 1), (0.02, 0)):
        changes = {**EASY, "optim_conf": {"lr": rate}}
        if code:
            changes["sanity_updates"] = 3
        options = command(corpus, tmp_path / str(rate), **changes)
        options += ["--sanity", "true"]
        monkeypatch.setattr(common, "setup_logging", lambda: None)
        try:
            common.run_main(lambda o=options: hubert_train.main(o))
            found = 0
        except SystemExit as exit_:
            found = exit_.code
        assert found == code


def test_labels_that_do_not_fit_are_refused_first(run, tmp_path):
    from tests.train.small_training import make_corpus

    broken = tmp_path / "broken"
    make_corpus(broken)
    path = broken / "text.km"
    path.write_text(path.read_text().replace("utt05 ", "utt05 0 ", 1))
    with pytest.raises(RecipeError, match="utterance utt05: found .* units for"):
        run(corpus=broken)


def test_a_batch_without_masked_frames_is_refused(make_parts):
    parts = make_parts(**EASY)
    names, batch = parts.train.load(parts.train.plan(1)[0], 1)
    batch["mask_indices"].fill_(-1)
    with pytest.raises(RecipeError, match="no masked frame"):
        overfit(parts.model, parts.optimizer, names, batch, parts.options)


@pytest.mark.parametrize(
    ("bits", "accuracy", "passed"),
    [
        (ENTROPY_SHARE * 4 + 0.01, ACCURACY, False),
        (ENTROPY_SHARE * 4 - 0.01, 0.0, True),
        (9.0, ACCURACY + 0.01, True),
        (float("nan"), 0.0, False),
    ],
)
def test_learnt_means_half_the_unigram_or_nine_tenths_right(bits, accuracy, passed):
    assert Sanity(10, 4.0, 6.0, 0.1, bits, accuracy, 10).passed is passed
