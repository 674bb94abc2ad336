"""A recogniser: its language models, long recordings, its package."""

import json
import shutil

import numpy as np
import pytest
import soundfile
import yaml

from espnet2_lamer.data import segmentation
from espnet2_lamer.data.audio import read_16k
from espnet2_lamer.data.segmentation import Segment
from espnet2_lamer.data.segments import part_of
from espnet2_lamer.data.speech import read_speech
from espnet2_lamer.errors import RecipeError
from espnet2_lamer.evaluation.language_model import LmOptions, add_language_models
from espnet2_lamer.evaluation.recogniser import Recogniser
from espnet2_lamer.evaluation.recogniser_files import read_record
from espnet2_lamer.evaluation.transcripts import write_transcript
from espnet2_lamer.fileio.datadir import read_table

LM = {
    "lm": "transformer",
    "lm_conf": {"embed_unit": 8, "att_unit": 8, "head": 2, "unit": 8, "layer": 1},
    "batch_type": "sorted",
    "batch_size": 4,
    "num_workers": 0,
    "max_epoch": 1,
    "optim": "adam",
    "best_model_criterion": [["valid", "loss", "min"]],
    "use_matplotlib": False,
    "use_tensorboard": False,
}


@pytest.fixture(scope="module")
def experiment(trained, tmp_path_factory):
    """The trained head with a 3-gram and a transformer LM, and what was reported."""
    target = tmp_path_factory.mktemp("recogniser")
    shutil.copytree(trained / "exp", target / "exp", symlinks=True)
    (target / "lm.yaml").write_text(yaml.safe_dump(LM))
    more = target / "more.txt"
    more.write_text("a ab\n\naab b!\n?\n")
    options = LmOptions(
        ngram_num=3,
        lm_config=target / "lm.yaml",
        texts=[("eng", more)],
        decoding={"ngram_weight": [0.0, 0.3], "lm_weight": 0.1, "penalty": [0.0, 1.0]},
    )
    add_language_models(target / "exp", options)
    return target / "exp", options


@pytest.fixture(scope="module")
def dev(trained):
    return read_table(trained / "dev/wav.scp")


def texts_of(recogniser, audio):
    return {utt: recogniser(read_speech(utt, path)) for utt, path in audio.items()}


def test_language_models_are_of_the_transcripts_and_more_text(experiment, trained):
    record = read_record(experiment[0] / "final")
    found = record["language_models"]
    # Two of the four lines hold text.
    assert found["sentences"] == len(read_table(trained / "train/text")) + 2
    assert found["ngram"]["order"] == 3 and found["ngram"]["dev_perplexity"] < 6
    assert found["lm"]["epochs"] == 1
    assert found["chosen_on_dev"]["utterances"] == 4
    assert record["decoding"]["ngram_weight"] in (0.0, 0.3)
    assert record["unit"] == "char" and record["tune"] == "head"


def test_finished_language_models_are_kept_and_unwanted_ones_go(experiment, tmp_path):
    copied = tmp_path / "exp"
    shutil.copytree(experiment[0], copied, symlinks=True)
    before = (copied / "final/ngram.arpa.gz").stat().st_mtime_ns
    add_language_models(copied, experiment[1])
    assert (copied / "final/ngram.arpa.gz").stat().st_mtime_ns == before
    add_language_models(copied, LmOptions())
    left = {path.name for path in (copied / "final").iterdir()}
    assert not left & {"ngram.arpa.gz", "lm.yaml", "lm.pth"}
    assert "language_models" not in read_record(copied / "final")
    assert Recogniser(copied).search is None


def test_without_language_models_the_text_is_the_recipes_decoding(
    experiment, dev, trained
):
    from espnet2_lamer.evaluation.head_decoding import decode_utterances
    from tests.evaluation.tiny_head import GREEDY, samples_of

    recipe = decode_utterances(
        trained / "exp/final", samples_of(trained / "dev"), GREEDY
    )
    found = texts_of(Recogniser(experiment[0], use_lm=False), dev)
    assert {u: t.text for u, t in found.items()} == {u: h[0] for u, h in recipe.items()}
    for transcript in found.values():
        words = [word.text for word in transcript.words]
        assert words == transcript.text.split()
        times = [t for token in transcript.tokens for t in (token.start, token.end)]
        assert times == sorted(times) and times[-1] <= transcript.end


def test_a_package_recognises_the_same_with_and_without_language_models(
    experiment, dev, tmp_path
):
    from espnet2_lamer.bin.export import main

    package = tmp_path / "model.zip"
    main(["--experiment", str(experiment[0]), "--output", str(package)])
    for use_lm in (True, False):
        expected = texts_of(Recogniser(experiment[0], use_lm=use_lm), dev)
        moved = tmp_path / f"{use_lm}.zip"
        shutil.copyfile(package, moved)
        assert texts_of(Recogniser(moved, use_lm=use_lm), dev) == expected


def test_a_package_with_its_lm_is_one_of_espnets(experiment, dev, tmp_path):
    from espnet2.bin.asr_inference import Speech2Text

    from espnet2_lamer.bin.export import main
    from espnet2_lamer.convert.packed import unpack_model

    package = tmp_path / "model.zip"
    main(["--experiment", str(experiment[0]), "--output", str(package)])
    files = unpack_model(package, tmp_path / "cache")
    assert {"lm_file", "lm_train_config"} <= files.keys()
    model = Speech2Text(**files, beam_size=2, ctc_weight=1.0, lm_weight=0.1)
    utt, path = next(iter(dev.items()))
    assert isinstance(model(read_speech(utt, path))[0][0], str)


@pytest.fixture(scope="module")
def long_file(dev, tmp_path_factory):
    """The dev utterances with pauses, at 48 kHz in two channels, and where they are."""
    import soxr

    pieces, parts, place = [], [], 0
    for utt, path in dev.items():
        speech = soxr.resample(read_speech(utt, path), 16000, 48000)
        parts += [np.zeros(24000, np.float32), speech]
        place += 24000
        pieces.append((place / 48000, (place + len(speech)) / 48000))
        place += len(speech)
    path = tmp_path_factory.mktemp("long") / "long talk.wav"
    samples = np.concatenate(parts)
    soundfile.write(path, np.stack([samples, 0.5 * samples], 1), 48000, "FLOAT")
    return path, pieces


def test_a_long_recording_gives_the_texts_of_its_pieces_in_its_own_time(
    experiment, long_file, monkeypatch
):
    path, pieces = long_file
    recogniser = Recogniser(experiment[0], use_lm=False)
    expected = [recogniser(read_16k(part_of(str(path), *piece))) for piece in pieces]
    found = [*recogniser.transcribe(str(path), pieces)]
    for (start, end), piece, one in zip(pieces, found, expected, strict=True):
        assert (piece.start, piece.end, piece.text) == (start, end, one.text)
        for word, same in zip(piece.words, one.words, strict=True):
            assert word.start == pytest.approx(same.start + start)
            assert start <= word.start < word.end <= end + 1e-6
    # Not all at once: each is recognised before the next one is read.
    calls = []
    monkeypatch.setattr(Recogniser, "__call__", lambda *_: calls.append(1))
    with pytest.raises(AttributeError):
        next(recogniser.transcribe(str(path), pieces))
    assert calls == [1]


def test_a_silent_piece_has_no_text_and_a_missing_one_is_an_error(
    experiment, long_file, caplog
):
    recogniser, path = Recogniser(experiment[0], use_lm=False), str(long_file[0])
    (silent,) = recogniser.transcribe(path, [(0.0, 0.4)])
    assert silent.text == "" and "silent" in caplog.text
    with pytest.raises(RecipeError, match="is outside: the recording has"):
        [*recogniser.transcribe(path, [(900.0, 901.0)])]
    with pytest.raises(RecipeError, match="file not found"):
        [*recogniser.transcribe("nowhere.wav", [(0.0, 1.0)])]


def test_the_command_writes_text_ctm_json_and_subtitles(
    experiment, long_file, tmp_path, monkeypatch
):
    from espnet2_lamer.bin.transcribe import main

    path, pieces = long_file
    asked = []

    def find_segments(*arguments):
        asked.append(arguments)
        return [Segment(*piece) for piece in pieces]

    monkeypatch.setattr(segmentation, "find_segments", find_segments)
    output = tmp_path / "text"
    main(["--model", str(experiment[0]), str(path), "--output", str(output)])
    assert asked == [(str(path), "vad", 2.0, 30.0)]
    found = json.loads((output / "long talk.json").read_text())
    words = [word for part in found["segments"] for word in part["words"]]
    assert [(p["start"], p["end"]) for p in found["segments"]] == [
        (round(start, 3), round(end, 3)) for start, end in pieces
    ]
    lines = (output / "long talk.ctm").read_text().splitlines()
    assert [line.split()[4] for line in lines] == [word["text"] for word in words]
    assert all(line.startswith("long_talk 1 ") for line in lines)
    text = (output / "long talk.txt").read_text().split()
    assert text == [word["text"] for word in words]
    cues = (output / "long talk.srt").read_text().strip().split("\n\n")
    assert [cue.split("\n")[0] for cue in cues] == [*map(str, range(1, len(cues) + 1))]
    assert " ".join(cue.split("\n")[2] for cue in cues).split() == text


def test_subtitles_are_short_and_clocks_carry_over(tmp_path):
    from espnet2_lamer.evaluation.recogniser import Transcript
    from espnet2_lamer.evaluation.timestamps import TimedWord

    words = tuple(TimedWord("W" * 9, 3599.0 + n, 3599.9996 + n, 0.5) for n in range(20))
    write_transcript("x", [Transcript(3599.0, 3620.0, "", words)], tmp_path)
    cues = (tmp_path / "x.srt").read_text().strip().split("\n\n")
    assert len(cues) == 3
    assert cues[0].split("\n")[1] == "00:59:59,000 --> 01:00:06,000"
    assert all(len(cue.split("\n")[2]) <= 84 for cue in cues)


@pytest.mark.parametrize(
    ("source", "changes", "message"),
    [
        ("nowhere", {}, "no recogniser there"),
        ("exp", {"lm_weight": 0.3}, "no language model takes part"),
    ],
)
def test_what_cannot_recognise_is_refused(trained, source, changes, message):
    with pytest.raises(RecipeError, match=message):
        Recogniser(trained / source, changes=changes)


def test_speech_too_short_for_a_frame_has_no_text(experiment):
    found = Recogniser(experiment[0])(np.zeros(500, np.float32))
    assert (found.text, found.words) == ("", ())
