"""What a resumed training must have in common with the one that was interrupted."""

import argparse

import pytest
import torch

from espnet2_lamer.errors import RecipeError
from espnet2_lamer.hubert import statistics
from espnet2_lamer.train.checkpoint import (
    check_fingerprint,
    check_ranks,
    fingerprint,
)


@pytest.fixture
def files(tmp_path):
    """Labels, audio list and shapes of two utterances."""
    contents = {
        "wav.scp": "a a.wav\nb b.wav\n",
        "text.km": "a 1 2\nb 3 4\n",
        "speech_shape": "a 1040\nb 1040\n",
    }
    for name, content in contents.items():
        (tmp_path / name).write_text(content)
    return tmp_path


def options(files, **changes):
    values = {
        "encoder_conf": {"base": "/models/base", "lamer": {"rank": 12}},
        "optim_conf": {"lr": 0.001},
        "batch_bins": 900000,
        "accum_grad": 4,
        "seed": 0,
        "num_classes": 1000,
        "max_epoch": 10,
        "num_workers": 4,
        "output_dir": "exp/a",
        "dist_rank": 0,
        "token_list": ["0", "1"],
        "train_data_path_and_name_and_type": [
            (str(files / "wav.scp"), "speech", "sound"),
            (str(files / "text.km"), "text", "text"),
        ],
        "train_shape_file": [str(files / "speech_shape")],
    }
    return argparse.Namespace(**{**values, **changes})


def changes(files, ranks=1, **other):
    before = fingerprint(options(files), 1)
    return check_fingerprint(
        before, fingerprint(options(files, **other), ranks), "exp/a", True
    )


@pytest.mark.parametrize(
    ("other", "line"),
    [
        ({"optim_conf": {"lr": 0.1}}, 'optim_conf: {"lr": 0.001} -> {"lr": 0.1}'),
        ({"batch_bins": 1}, "batch_bins: 900000 -> 1"),
        ({"accum_grad": 8}, "accum_grad: 4 -> 8"),
        ({"seed": 1}, "seed: 0 -> 1"),
        ({"new_option": 3}, "new_option: not set -> 3"),
        ({"ranks": 2}, "world_size: 1 -> 2"),
    ],
)
def test_options_and_number_of_ranks_that_decide_the_course_are_compared(
    files, other, line
):
    assert changes(files, **other) == [line]


def test_experts_are_compared_and_where_the_base_lies_is_not(files):
    moved = {"base": "/elsewhere", "lamer": {"rank": 12}}
    assert changes(files, encoder_conf=moved) == []
    (line,) = changes(files, encoder_conf=moved | {"lamer": {"rank": 24}})
    assert line.startswith('encoder_conf: {"lamer": {"rank": 12}}')


@pytest.mark.parametrize("name", ["text.km", "wav.scp", "speech_shape"])
def test_training_files_are_compared_by_content(files, name):
    before = fingerprint(options(files), 1)
    path = files / name
    path.write_text(path.read_text().replace("b", "c", 1))
    now = fingerprint(options(files), 1)
    (line,) = check_fingerprint(before, now, "exp/a", True)
    key = {
        "text.km": "training data 'text'",
        "wav.scp": "training data 'speech'",
        "speech_shape": "shape file speech_shape",
    }[name]
    assert line.startswith(f"{key}: ")


def test_files_that_only_moved_are_the_same(files, tmp_path_factory):
    before = fingerprint(options(files), 1)
    other = tmp_path_factory.mktemp("moved")
    for path in files.iterdir():
        (other / path.name).write_bytes(path.read_bytes())
    assert fingerprint(options(other), 1) == before


def test_how_long_and_where_it_runs_may_change(files):
    other = {"max_epoch": 99, "num_workers": 0, "output_dir": "exp/b", "dist_rank": 1}
    assert changes(files, **other) == []


def test_a_change_is_refused_by_name_unless_it_is_allowed(files):
    before = fingerprint(options(files), 1)
    now = fingerprint(options(files, seed=1), 2)
    with pytest.raises(RecipeError) as raised:
        check_fingerprint(before, now, "exp/a/checkpoints", False)
    message = str(raised.value)
    assert message.startswith("exp/a/checkpoints: this training began under other")
    assert "seed: 0 -> 1; world_size: 1 -> 2. Train into another" in message
    assert "--allow_changed true" in message
    assert len(check_fingerprint(before, now, "", True)) == 2
    assert check_fingerprint(before, dict(before), "", False) == []


def test_ranks_that_began_under_other_conditions_are_named(files, monkeypatch):
    ours = fingerprint(options(files, amp_dtype="bf16"), 3)

    def gather(every, found):
        every[:] = [ours, dict(ours), found]

    monkeypatch.setattr(statistics, "is_distributed", lambda: True)
    monkeypatch.setattr(torch.distributed, "get_world_size", lambda: 3)
    monkeypatch.setattr(torch.distributed, "all_gather_object", gather)
    check_ranks(dict(ours))
    other = fingerprint(options(files, amp_dtype="none"), 3)
    expected = 'amp_dtype: rank 0 has "bf16", rank 2 has "none"'
    with pytest.raises(RecipeError, match=expected):
        check_ranks(other)


def test_every_option_of_the_command_line_is_compared_unless_it_is_known_to_be_free():
    """A new option is part of the course until somebody says that it is not."""
    from espnet2_lamer.tasks.hubert import LamerHubertTask

    args = LamerHubertTask.get_parser().parse_args(["--output_dir", "exp"])
    args.train_data_path_and_name_and_type = args.train_shape_file = []
    compared = fingerprint(args, 1)
    for key in (
        "optim",
        "optim_conf",
        "scheduler_conf",
        "model_conf",
        "encoder_conf",
        "collate_fn_conf",
        "amp_dtype",
        "grad_clip",
        "accum_grad",
        "batch_bins",
        "num_iters_per_epoch",
        "seed",
        "exclude_langs",
        "init_param",
        "train_dtype",
    ):
        assert key in compared, key
    for key in ("resume", "ngpu", "log_interval", "checkpoint_interval", "dist_rank"):
        assert key not in compared, key
