"""Features of a shard: order, batches of equal length, errors, time."""

from threading import Event

import numpy as np
import pytest
import soundfile

from espnet2_lamer.errors import RecipeError
from espnet2_lamer.units import extractor as extractor_module
from espnet2_lamer.units.extractor import Extractor
from espnet2_lamer.units.teacher import HubertTeacher, load_teacher

LENGTHS = [4000, 8000, 4000, 3999, 8000, 4000, 400]


@pytest.fixture(scope="module")
def rows(tmp_path_factory):
    root = tmp_path_factory.mktemp("rows")
    rng = np.random.default_rng(0)
    rows = []
    for number, samples in enumerate(LENGTHS):
        path = root / f"{number}.wav"
        signal = rng.uniform(0.01, 1) * rng.uniform(-1, 1, samples)
        soundfile.write(path, signal, 16000)
        rows.append([f"utt{number}", str(path), path.stat().st_size])
    return rows


@pytest.mark.parametrize("mode", ["layer_norm", "group_norm"])
@pytest.mark.parametrize("batch_samples", [8000, 12000, 10**6])
def test_batches_give_what_each_utterance_gives_alone(
    rows, hubert_dirs, monkeypatch, mode, batch_samples
):
    teacher = load_teacher(str(hubert_dirs[mode]), 2)
    alone = [features.numpy() for _, features in Extractor(teacher)(rows)]
    sizes = []
    forward = teacher.forward_batch

    def note(samples, *lengths):
        sizes.append(samples.shape)
        return forward(samples, *lengths)

    monkeypatch.setattr(HubertTeacher, "batch_samples", batch_samples)
    monkeypatch.setattr(teacher, "forward_batch", note)
    together = list(Extractor(teacher)(rows))
    assert [row for row, _ in together] == rows
    for (_, features), expected in zip(together, alone, strict=True):
        np.testing.assert_allclose(features.numpy(), expected, atol=1e-5)
    assert all(n == 1 or n * samples <= batch_samples for n, samples in sizes)
    assert sum(number for number, _ in sizes) == len(LENGTHS)
    largest = max(number for number, _ in sizes)
    if mode == "group_norm":  # hears padding
        assert sum(number * samples for number, samples in sizes) == sum(LENGTHS)
        assert largest == {8000: 2, 12000: 3, 10**6: 3}[batch_samples]
    else:
        assert largest == {8000: 2, 12000: 3, 10**6: 7}[batch_samples]


def test_a_teacher_that_hears_padding_is_given_none(rows, hubert_dirs):
    samples = np.zeros((2, 800), np.float32)
    assert load_teacher(str(hubert_dirs["layer_norm"]), 1).pads
    teacher = load_teacher(str(hubert_dirs["group_norm"]), 1)
    assert not teacher.pads
    with pytest.raises(ValueError, match="hears padding"):
        teacher.forward_batch(samples, [800, 640])


def test_a_header_that_is_wrong_pads_nothing(rows, hubert_dirs, monkeypatch):
    teacher = load_teacher(str(hubert_dirs["group_norm"]), 1)
    alone = [features.numpy() for _, features in Extractor(teacher)(rows)]
    monkeypatch.setattr(HubertTeacher, "batch_samples", 10**6)
    monkeypatch.setattr(extractor_module, "count_samples", lambda *row: 4000)
    together = [features.numpy() for _, features in Extractor(teacher)(rows)]
    for features, expected in zip(together, alone, strict=True):
        np.testing.assert_allclose(features, expected, atol=1e-5)


def test_audio_is_read_ahead_of_the_teacher(rows, mfcc, monkeypatch):
    """While the first batch is in the teacher, that of others has been asked for."""
    monkeypatch.setattr(type(mfcc), "batch_samples", 1)
    asked, real, there = [], extractor_module.read_speech, Event()

    def read(utt, path):
        asked.append(utt)
        if len(asked) > extractor_module.AHEAD:
            there.set()
        return real(utt, path)

    def forward(samples):
        assert there.wait(timeout=60)
        return type(mfcc).forward_batch(mfcc, samples)

    monkeypatch.setattr(extractor_module, "read_speech", read)
    monkeypatch.setattr(mfcc, "forward_batch", forward, raising=False)
    found = [row for row, _ in Extractor(mfcc)(rows)]
    assert found == rows


def test_on_a_cpu_every_utterance_goes_through_alone(rows, hubert_dirs):
    teacher = load_teacher(str(hubert_dirs["group_norm"]), 1)
    extract = Extractor(teacher)
    for (_, path, _), (_, features) in zip(rows, extract(rows), strict=True):
        expected = teacher.forward(soundfile.read(path, dtype="float32")[0])
        np.testing.assert_array_equal(features.numpy(), expected)


def test_time_and_speech_are_counted(rows, mfcc):
    extract = Extractor(mfcc)
    list(extract(rows))
    assert extract.audio == pytest.approx(sum(LENGTHS) / 16000)
    assert 0 < extract.forward < 60


@pytest.mark.parametrize("batch_samples", [0, 10**6])
def test_an_utterance_that_is_too_short_is_named(
    rows, mfcc, tmp_path, monkeypatch, batch_samples
):
    path = tmp_path / "short.wav"
    soundfile.write(path, np.linspace(-1, 1, 399), 16000)
    monkeypatch.setattr(type(mfcc), "batch_samples", batch_samples)
    with pytest.raises(RecipeError, match="short.wav: utterance 'utt_short': 399"):
        list(Extractor(mfcc)([*rows, ["utt_short", str(path), 0]]))
