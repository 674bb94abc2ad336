"""Results say what of a test set training has, and what has no reading."""

import json

from espnet2_lamer.evaluation.results import Results, write_results
from espnet2_lamer.evaluation.set_table import set_table
from espnet2_lamer.fileio.datadir import write_table


def make(directory, speakers="", sentences=(), text=()):
    directory.mkdir(parents=True)
    # An utterance without a speaker is its own.
    own = [f"u{n}" if s == "?" else s for n, s in enumerate(speakers)]
    tables = {"utt2spk": own, "text.char": sentences, "text": text}
    for name, column in tables.items():
        if column:
            table = {f"u{n}": value for n, value in enumerate(column)}
            write_table(directory / name, table)
    return directory


def values(table, label):
    return {name: round(m.value) for name, m in table.rows[label].items()}


def test_shares_are_of_speakers_and_sentences_not_of_utterances(tmp_path):
    train = make(tmp_path / "train", "aab?", ["ONE", "TWO", "TWO"])
    test = make(tmp_path / "test", "accd?", ["TWO.", "SIX", "SIX"])
    pretraining = make(tmp_path / "ssl_train", "cd")
    sets = {"asr eng": ([train], [test], "char")}
    table = set_table(sets, [pretraining])
    assert values(table, "asr eng") == {
        "test speakers in training": 33,
        "test speakers in pretraining": 67,
        "test sentences in training": 50,
    }
    assert set_table(sets).rows["asr eng"].keys() == {
        *("test speakers in training", "test sentences in training")
    }
    write_results(tmp_path, Results({}, tables=[table]))
    page = (tmp_path / "RESULTS.md").read_text()
    assert "|asr eng|33.3 (of 3)|66.7 (of 3)|50.0 (of 2)|" in page
    figures = json.loads((tmp_path / "results.json").read_text())["figures"]
    assert {f["table"] for f in figures} == {"Test sets"} and len(figures) == 3


def test_what_is_not_known_has_no_line(tmp_path):
    train, test = make(tmp_path / "train", "???"), make(tmp_path / "test", "ab?")
    assert set_table({"lid": ([train], [test], "lang")}, [train]) is None


def test_tokens_without_a_reading_are_counted_in_units_of_readings(tmp_path):
    train = make(tmp_path / "train", text=["n ei5", "h ou2"])
    test = make(tmp_path / "test", text=["n ei5 KTV", "𪜶 h ou2"])
    sets = {unit: ([train], [test], unit) for unit in ("jyutping", "char")}
    table = set_table(sets)
    assert values(table, "jyutping") == {
        "test tokens without a reading": 33,
        "training tokens without a reading": 0,
    }
    assert list(table.rows) == ["jyutping"]
