"""Audio and texts that Whisper cannot take: named, left out and counted, early."""

import json

import numpy as np
import pytest
import soundfile
import torch

from espnet2_lamer.asr.upstream import TooShortUttError
from espnet2_lamer.errors import RecipeError
from espnet2_lamer.fileio.datadir import read_table, write_table
from espnet2_lamer.recipe.whisper.data import TEXT_TOKENS, select
from espnet2_lamer.whisper.text import encode_text
from tests.recipe.whisper.settings import make_options
from tests.whisper.small_whisper import batch, make_model, save_whisper, text

LONG = "ah " * (TEXT_TOKENS + 1)
SPEAKERS = {"train": 4, "dev": 2, "test": 2}


def corpus(root, texts):
    """Prepared sets of one language; the last utterance of each has its own text."""
    for split, count in SPEAKERS.items():
        folder = root / "data" / f"{split}_eng"
        tables = {name: {} for name in ("wav.scp", "text", "utt2spk", "utt2lang")}
        for number in range(count):
            utt = f"{split}{number}"
            path = root / f"{utt}.wav"
            noise = np.random.default_rng(number).normal(size=32000) * 0.05
            soundfile.write(path, noise, 16000)
            said = texts.get(split, "one two") if number == count - 1 else "good day"
            row = {"wav.scp": path, "text": said, "utt2spk": utt, "utt2lang": "eng"}
            for name, value in row.items():
                tables[name][utt] = str(value)
        for name, table in tables.items():
            write_table(folder / name, table)
    return make_options(root, langs=["eng"], train_minutes=0.0, dev_utts=0, test_utts=0)


def test_a_long_transcript_is_left_out_named_and_counted(tmp_path, caplog):
    count = len(encode_text(LONG))
    assert count > TEXT_TOKENS
    options = corpus(tmp_path, dict.fromkeys(SPEAKERS, LONG))
    select(options)
    assert f"train3 ({count} tokens)" in caplog.text
    assert f"dev1 ({count} tokens)" in caplog.text
    report = json.loads((options.raw / "whisper_sets.json").read_text())["sets"]
    found = {name.rpartition("_")[2]: part for name, part in report.items()}
    assert {k: v["long_texts"] for k, v in found.items()} == {
        "train": 1,
        "dev": 1,
        "test": 0,
    }
    assert {k: v["utterances"] for k, v in found.items()} == {
        "train": 3,
        "dev": 1,
        # The reference of a test is never an input.
        "test": 2,
    }
    kept = read_table(options.set_dir("eng", "train") / "text.target")
    assert "train3" not in kept and len(kept) == 3


def test_the_longest_text_that_fits_stays(tmp_path, caplog):
    fits = "ah " * TEXT_TOKENS
    fits = fits[: len(fits) - 3 * (len(encode_text(fits)) - TEXT_TOKENS)]
    assert len(encode_text(fits)) == TEXT_TOKENS
    options = corpus(tmp_path, {"train": fits})
    select(options)
    assert "left out, whose texts" not in caplog.text
    assert len(read_table(options.set_dir("eng", "train") / "text.target")) == 4


def test_nothing_but_long_transcripts_is_refused(tmp_path):
    options = corpus(tmp_path, {})
    table = tmp_path / "data" / "dev_eng" / "text"
    write_table(table, dict.fromkeys(read_table(table), LONG))
    with pytest.raises(RecipeError, match=r"text\.raw: every transcript is longer"):
        select(options)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return make_model(save_whisper(tmp_path_factory.mktemp("odd") / "whisper.pt"))


def test_training_names_the_utterance_of_a_text_that_does_not_fit(model):
    most = model.decoder.max_tokens - 4
    data = batch()
    data["text"], data["text_lengths"] = text(4, most + 1, 5)
    message = f"utterance u1: a text of {most + 1} tokens, expected at most {most}"
    with pytest.raises(RecipeError, match=message):
        model(**data)
    data["text"], data["text_lengths"] = text(4, most, 5)
    model(**data)


def test_no_audio_at_all_is_called_so_and_lets_espnets_decoding_go_on(model):
    for samples in ([0], [16000, 0]):
        waves = torch.zeros(len(samples), max(samples))
        with pytest.raises(RecipeError, match="without audio .0 samples") as error:
            model.route(waves, torch.tensor(samples), ["eng"] * len(samples))
        assert isinstance(error.value, TooShortUttError)
