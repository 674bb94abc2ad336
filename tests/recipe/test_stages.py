"""What stages depend on."""

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest

from espnet2_lamer.recipe.stage import Stage, work
from espnet2_lamer.recipe.stages import ssl1
from espnet2_lamer.recipe.whisper.stages import asr1


def _touch(root, *names):
    for name in names:
        path = Path(root) / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("a b\n")


def test_selection_depends_on_texts_speakers_evaluation_sets_and_clusters(tmp_path):
    data = tmp_path / "data"
    _touch(data, "train_yue/wav.scp", "train_yue/utt2lang", "train_yue/utt2spk")
    _touch(data, "train_yue/text", "dev_yue/wav.scp", "test_yue/wav.scp")
    _touch(data, "eval/fleurs/test_yue/text", "eval/fleurs/test_yue/wav.scp")
    _touch(data, "eval/fleurs/train_yue/wav.scp", "eval/fleurs/test_eng/wav.scp")
    _touch(tmp_path, "text.km")
    options = SimpleNamespace(
        datadir=data,
        langs=["yue"],
        replay_sampling="cluster",
        replay_clusters=str(tmp_path / "text.km"),
    )
    found = ssl1["selection"].inputs(options)
    assert len(found) == len(set(found))
    assert {path.relative_to(tmp_path).as_posix() for path in found} == {
        *("data/train_yue/wav.scp", "data/train_yue/utt2lang", "data/train_yue/text"),
        *("data/train_yue/utt2spk", "data/dev_yue/wav.scp", "data/test_yue/wav.scp"),
        "data/eval/fleurs/test_yue/wav.scp",
        *("data/eval/fleurs/test_yue/text", "text.km"),
    }
    options.replay_sampling = "uniform"
    assert tmp_path / "text.km" not in ssl1["selection"].inputs(options)


def test_an_option_that_does_not_exist_cannot_belong_to_a_stage():
    stage = Stage(0, "nothing", "nothing", "seed n_cluster", lambda options: None)
    with pytest.raises(ValueError, match=r"stage 0: no option \['n_cluster'\]"):
        replace(ssl1, stages=(stage,))


@pytest.mark.parametrize("recipe", [ssl1, asr1], ids=lambda recipe: recipe.name)
def test_stages_have_names_and_numbers_of_their_own(recipe):
    stages = list(recipe)
    assert [stage.number for stage in stages] == list(range(len(stages)))
    assert len({stage.name for stage in stages}) == len(stages)


def test_the_work_of_a_stage_is_imported_when_it_is_done():
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        work("options", "nothing")(None)
