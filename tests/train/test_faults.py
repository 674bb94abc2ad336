"""Trainings that are really killed, starved and fed with rubbish, and go on.

All run in processes forked from one that has loaded ESPnet (fault_worker.py). What is
compared with the training that was never disturbed is compared to the bit: weights,
optimizer, averaged model and every logged figure but times.
"""

import json
import subprocess
import sys
from pathlib import Path

import pytest

WORKER = Path(__file__).with_name("fault_worker.py")
KILLED = -9
FAST = (
    "two kills",
    "kill while saving",
    "preempted",
    "corrupted",
    "disk full",
    "changed",
    "broken data",
)
RARE = ("not a number", "worker killed", "two ranks", "unmonitored")


def run(directory, *scenarios):
    result = subprocess.run(
        [sys.executable, WORKER, directory / "work", *scenarios],
        capture_output=True,
        text=True,
        timeout=900,
        check=False,
    )
    assert result.returncode == 0, result.stderr[-3000:]
    return json.loads(result.stdout.splitlines()[-1])


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    return run(tmp_path_factory.mktemp("faults"), *FAST)


@pytest.fixture(scope="module")
def rare(tmp_path_factory):
    return run(tmp_path_factory.mktemp("rare"), *RARE)


def test_a_training_killed_at_random_moments_ends_as_if_it_never_was(report):
    found = report["two kills"]
    assert found["codes"][-1] == 0
    assert found["differences"] == [], found


def test_a_kill_in_the_middle_of_a_checkpoint_loses_nothing(report):
    found = report["kill while saving"]
    assert found["codes"] == [KILLED, 0]
    assert len(found["left"]) == 1 and found["left_after"] == []
    assert found["differences"] == []


CODES = {"SIGTERM": 143, "SIGUSR1": 138, "SIGINT": 130}


def saved_and_left(found):
    assert {name.partition(" ")[0] for name in found} == set(CODES)
    for name, way in found.items():
        assert way["codes"] == [CODES[name.partition(" ")[0]], 0], name
        assert way["message"] and way["resumed"] and not way["traceback"], name
        assert way["differences"] == [], name


def test_preemption_saves_and_leaves(report):
    saved_and_left(report["preempted"])


@pytest.mark.slow
def test_preemption_otherwise_saves_and_leaves(tmp_path):
    saved_and_left(run(tmp_path, "preempted otherwise")["preempted otherwise"])


def test_a_corrupted_checkpoint_is_named_and_the_one_before_it_used(report):
    found = report["corrupted"]
    assert found["codes"] == [KILLED, 0]
    assert found["named"]
    assert found["differences"] == []


def test_a_full_disk_stops_with_a_message_and_whole_checkpoints(report):
    found = report["disk full"]
    assert found["codes"] == [1, 0]
    assert "of update 4 cannot be written: " in found["message"]
    assert "update_00000004.pth: File too large; files may" in found["message"]
    assert "run the same command again to go on; update_0" in found["message"]
    assert found["message"].endswith("is whole")
    checkpoints = [name for name in found["files"] if name.endswith(".pth")]
    assert found["files"] == sorted(
        checkpoints + [f"{name}.sha256" for name in checkpoints]
    )
    assert found["differences"] == []


def test_other_options_and_other_units_are_refused_on_resume(report):
    found = report["changed"]
    code, refused, message = found["lr"]
    assert (code, refused) == (KILLED, 1)
    assert 'optim_conf: {"lr": 0.01} -> {"lr": 0.02}. Train into another' in message
    assert "--allow_changed true" in message
    refused, message = found["units"]
    assert refused == 1 and "training data 'text': " in message
    assert found["allowed"] == [0, True]


@pytest.mark.slow
def test_nan_updates_are_skipped_counted_and_end_in_a_diagnosis(rare):
    found = rare["not a number"]
    assert found["codes"] == [0, 1]
    assert found["finite"]
    # One of the four updates of the first epoch.
    assert found["bad"] == 25.0 and found["skipped"] == 1
    assert "3 updates in a row had a gradient that is not finite" in found["message"]
    assert "lora_A" in found["message"] and "utterances ['utt" in found["message"]
    assert found["checkpoints"] > 0


@pytest.mark.parametrize("name", ["audio0", "audio1"])
def test_broken_audio_stops_by_the_name_of_its_utterance(report, name):
    code, message = report["broken data"][name]
    assert code == 1
    assert "utterance utt07: its audio or units cannot be read" in message
    assert "utt07.wav" in message


def test_a_missing_line_of_units_stops_by_the_name_of_its_utterance(report):
    code, message = report["broken data"]["line"]
    assert code == 1 and "utterance utt11: " in message


@pytest.mark.slow
def test_a_killed_loader_process_is_named_and_training_goes_on_later(rare):
    found = rare["worker killed"]
    assert found["codes"] == [1, 0]
    assert "a process that loads audio died" in found["message"]
    assert found["differences"] == []


@pytest.mark.slow
def test_two_ranks_resume_to_the_bit_and_agree_on_stopping(rare):
    found = rare["two ranks"]
    assert found["codes"] == [[0, 0], [0, 0]]
    assert found["killed"] == [[KILLED, KILLED]]
    assert found["differences"] == [], found
    # The signal reached one rank only.
    assert found["signal"] == [138, 138]
    assert found["signal_differences"] == []


@pytest.mark.slow
def test_a_rank_that_dies_ends_the_other_with_a_traceback(rare):
    found = rare["two ranks"]
    assert found["survivor"] == 1
    assert found["traceback"]
    assert found["survived_seconds"] < 30


@pytest.mark.slow
def test_the_forgetting_monitor_changes_no_weight_and_no_update(rare):
    found = rare["unmonitored"]
    assert found["code"] == 0
    assert found["differences"] == []
    # One line a validation, here as after the kills above.
    assert found["lines"] == [3, 0]
    assert found["figures"] == [
        f"{epoch}.valid.{figure}_{lang}"
        for epoch in (1, 2, 3)
        for figure in ("cka", "probe")
        for lang in ("cmn", "yue")
    ]


@pytest.mark.slow
def test_ten_kills(tmp_path):
    found = run(tmp_path, "ten kills", "two ranks, ten kills")
    assert found["ten kills"]["differences"] == [], found["ten kills"]
    assert found["ten kills"]["resumed"] > 0
    ranks = found["two ranks, ten kills"]
    assert ranks["differences"] == [], ranks
