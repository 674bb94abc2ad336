"""The leaderboard archive: folders per task, complete, checked before it is written."""

import zipfile

import pytest

from espnet2_lamer.bin import submission
from espnet2_lamer.errors import RecipeError
from tests.evaluation.decoded_runs import decoded_run

SHARED = {"benchmark": "mlsuperb", "budget": "1h", "system": "lamer"}


@pytest.fixture
def expdir(tmp_path):
    """Runs of all four tracks with the 1 h budget."""
    exp, raw = tmp_path / "exp", tmp_path / "dump" / "raw"
    text = {"mls_eng_1": ("eng", "AB C"), "mls_eng_2": ("eng", "A")}
    said = {"free": {"mls_eng_1": "AB C", "mls_eng_2": ""}}
    official = {"corpus": "mls", "official_name": "eng1", "train_sets": ("eng1_train",)}
    decoded_run(exp, raw, {"eng": text}, said, **official, **SHARED)
    decoded_run(exp, raw, {"all": text}, said, track="multi_asr", **SHARED)
    tags = {utt: (lang, f"[{lang}]") for utt, (lang, _) in text.items()}
    found = {"first_tag": {u: "[eng]" for u in tags}}
    decoded_run(exp, raw, {"all": tags}, found, track="lid", unit="lang", **SHARED)
    joint = {utt: (lang, f"[{lang}] {t}") for utt, (lang, t) in text.items()}
    heard = {"free": {"mls_eng_1": "[eng] AB", "mls_eng_2": "[eng]"}}
    decoded_run(exp, raw, {"all": joint}, heard, track="asr_lid", **SHARED)
    return exp


def command(expdir, *arguments):
    folders = ["--expdir", str(expdir), "--dumpdir", str(expdir.parent / "dump")]
    output = ["--output", str(expdir.parent / "out.zip")]
    return [*folders, "--system", "lamer", *output, *arguments]


def test_the_archive_has_a_folder_per_task_inside_predict(expdir):
    submission.main(command(expdir, "--budgets", "1h"))
    with zipfile.ZipFile(expdir.parent / "out.zip") as archive:
        content = {name: archive.read(name).decode() for name in archive.namelist()}
    assert set(content) == {
        "README.txt",
        *(
            f"predict/{folder}/{name}"
            for folder in (
                "monolingual_asr/1h/eng1",
                "multilingual_asr/1h/all",
                "multilingual_asr_lid/1h/all",
            )
            for name in ("text", "hyp.trn")
        ),
        "predict/lid/1h/all/text",
    }
    folder = "predict/monolingual_asr/1h/eng1"
    assert content[f"{folder}/text"] == "mls_eng_1 AB C\nmls_eng_2\n"
    assert content[f"{folder}/hyp.trn"] == (
        "A B <space> C\t(mls_eng_1-mls_eng_1)\n\t(mls_eng_2-mls_eng_2)\n"
    )
    assert content["predict/lid/1h/all/text"] == "mls_eng_1 [eng]\nmls_eng_2 [eng]\n"
    joint = content["predict/multilingual_asr_lid/1h/all/hyp.trn"]
    assert joint.startswith("<space> A B\t")
    assert str(expdir.parent) not in "".join(content.values())


def test_a_missing_track_or_budget_is_named_and_nothing_is_written(expdir):
    with pytest.raises(RecipeError, match="no predictions of lamer for .*asr 10min"):
        submission.main(command(expdir))
    assert not (expdir.parent / "out.zip").exists()
    submission.main(command(expdir, "--budgets", "1h", "--tracks", "lid"))
    with zipfile.ZipFile(expdir.parent / "out.zip") as archive:
        assert "predict/lid/1h/all/text" in archive.namelist()
        assert not [n for n in archive.namelist() if "asr" in n]


def test_monolingual_tasks_that_are_missing_are_told(expdir, caplog):
    submission.main(command(expdir, "--budgets", "1h"))
    (warning,) = [r.message for r in caplog.records if r.levelname == "WARNING"]
    assert "no predictions for eng2 eng3 fra1" in warning and " eng1" not in warning


def test_an_unknown_system_is_named_with_those_that_are_there(expdir):
    with pytest.raises(RecipeError, match="--system base: .* found systems lamer"):
        submission.main([*command(expdir), "--system", "base"])


def test_a_hypothesis_that_is_missing_is_found_before_the_upload(expdir):
    (text,) = expdir.glob("multi_asr*/decode_all/free/1best_recog/text")
    text.write_text("mls_eng_1 AB\n")
    with pytest.raises(RecipeError, match="1 utterance.*'mls_eng_2'"):
        submission.main(command(expdir, "--budgets", "1h"))


def test_the_same_predictions_give_the_same_bytes(expdir):
    out = expdir.parent / "out.zip"
    submission.main(command(expdir, "--budgets", "1h"))
    first = out.read_bytes()
    submission.main(command(expdir, "--budgets", "1h"))
    assert out.read_bytes() == first
