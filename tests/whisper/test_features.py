import pytest
import torch
from whisper.audio import log_mel_spectrogram

from espnet2_lamer.errors import RecipeError
from espnet2_lamer.whisper.encoder import log_mel
from tests.whisper.small_whisper import speech


def test_an_utterance_has_the_first_frames_of_whispers_own_padded_spectrogram():
    waves, lengths = speech(0.7)
    ours, frames = log_mel(waves, lengths, 80)
    theirs = log_mel_spectrogram(waves[0], padding=480000 - waves.shape[1])
    assert frames.tolist() == [70]
    # Fewer frames, fewer threads' shares: sums may round otherwise.
    torch.testing.assert_close(ours[0], theirs[:, :70], atol=1e-6, rtol=0)


def test_thirty_seconds_are_whispers_spectrogram_to_the_bit():
    waves, lengths = speech(30.0)
    waves[:, -400:] = 0.0
    ours, frames = log_mel(waves, lengths, 80)
    assert frames.tolist() == [3000]
    assert torch.equal(ours, log_mel_spectrogram(waves))


def test_neither_the_batch_nor_what_is_in_the_padding_changes_an_utterance():
    waves, lengths = speech(0.7, 0.333, 0.51)
    together, frames = log_mel(waves, lengths, 80)
    for row, (wave, n) in enumerate(zip(waves, lengths.tolist(), strict=True)):
        alone, [count] = log_mel(wave[None, :n], torch.tensor([n]), 80)
        assert count == frames[row]
        torch.testing.assert_close(
            together[row, :, :count], alone[0], atol=1e-6, rtol=0
        )
        assert not together[row, :, count:].any()


def test_trailing_silence_is_part_of_an_utterance_as_far_as_30_s_allow():
    waves, lengths = speech(0.7, 0.4)
    padded, frames = log_mel(waves, lengths, 80, trailing_silence=0.25)
    assert frames.tolist() == [95, 65]
    expected, _ = log_mel(
        torch.nn.functional.pad(waves[:1], (0, 4000)), lengths[:1] + 4000, 80
    )
    assert torch.equal(padded[0], expected[0])
    waves, lengths = speech(29.9)
    assert log_mel(waves, lengths, 80, 0.0, 0.25)[1].tolist() == [3000]


def test_min_seconds_adds_silence():
    waves, lengths = speech(0.7, 0.4)
    padded, frames = log_mel(waves, lengths, 80, min_seconds=1.0)
    silence = torch.zeros(2, 16000 - waves.shape[1])
    waves = waves.clone()
    waves[1, int(lengths[1]) :] = 0.0
    expected, _ = log_mel(
        torch.cat([waves, silence], 1), torch.tensor([16000, 16000]), 80
    )
    assert frames.tolist() == [100, 100]
    assert torch.equal(padded, expected)


@pytest.mark.parametrize(
    ("seconds", "message"),
    [(30.1, "30.10 s: Whisper takes up to 30"), (0.0, "0 samples")],
)
def test_an_impossible_length_is_an_error_that_names_it(seconds, message):
    with pytest.raises(RecipeError, match=message):
        log_mel(torch.zeros(1, 500000), torch.tensor([round(seconds * 16000)]), 80)
