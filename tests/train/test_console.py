"""Where ESPnet's messages go: the log, also from processes of their own per GPU."""

import logging
import multiprocessing
import os

from espnet2_lamer.train.console import child_log, espnet_log


def test_messages_go_into_the_file_and_errors_to_the_console_too(tmp_path, capfd):
    console = logging.StreamHandler()
    root = logging.getLogger()
    root.addHandler(console)
    try:
        with espnet_log(tmp_path / "exp" / "train.log"):
            logging.info("1epoch:train: loss=2")
            logging.error("no audio")
        with espnet_log(tmp_path / "exp" / "train.log"):
            logging.info("resumed")
    finally:
        root.removeHandler(console)
    lines = (tmp_path / "exp" / "train.log").read_text().splitlines()
    assert [line.split(": ", 1)[1] for line in lines] == [
        "1epoch:train: loss=2",
        "no audio",
        "resumed",
    ]
    assert capfd.readouterr().err.strip() == "no audio"


def test_a_spawned_process_logs_into_the_same_file(tmp_path, monkeypatch):
    path = tmp_path / "train.log"
    with espnet_log(path):
        inherited = dict(os.environ)
    before = dict(os.environ)
    assert inherited.keys() - before.keys()
    monkeypatch.setattr(os, "environ", inherited)
    monkeypatch.setattr(multiprocessing, "parent_process", object)
    with child_log():
        logging.info("1epoch:train: loss=2")
    assert path.read_text().strip().endswith("INFO: 1epoch:train: loss=2")


def test_a_process_that_nobody_spawned_logs_as_it_likes(tmp_path):
    handlers = list(logging.getLogger().handlers)
    with child_log():
        assert logging.getLogger().handlers == handlers
    with espnet_log(tmp_path / "train.log"):
        # In the parent itself, which has the file open.
        count = len(logging.getLogger().handlers)
        with child_log():
            assert len(logging.getLogger().handlers) == count
