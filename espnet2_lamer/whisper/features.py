"""Whisper's log-mel spectrogram of utterances of any length, not padded to 30 s."""

import torch
from torch import Tensor
from torch.nn import functional as F
from whisper.audio import HOP_LENGTH, N_FFT, N_SAMPLES, SAMPLE_RATE, mel_filters

from espnet2_lamer.errors import RecipeError

DYNAMIC_RANGE = 8.0  # decades below an utterance's maximum that are kept


def log_mel(
    speech: Tensor,
    lengths: Tensor,
    n_mels: int,
    min_seconds: float = 0.0,
    trailing_silence: float = 0.0,
) -> tuple[Tensor, Tensor]:
    """Compute what Whisper computes, from each utterance's own samples alone.

    openai-whisper pads to 30 s with zeros. Its frames up to an utterance's end are
    these; what stands in a batch beyond an utterance's end changes nothing.

    Args:
        speech: Waveforms ``[B, n]``, 16 kHz.
        lengths: Valid samples ``[B]``.
        n_mels: 80 or 128.
        min_seconds: Shorter utterances count as followed by silence; 30 is Whisper's
            own way.
        trailing_silence: Seconds of it that count as the end of every utterance, as
            far as 30 s allow.

    Returns:
        Spectrogram ``[B, n_mels, F]``, zero in padding, and frames ``[B]``,
        ``ceil(n / 160)``.

    Raises:
        RecipeError: An utterance is longer than Whisper's 30 s, or empty.
    """
    longest, shortest = int(lengths.max()), int(lengths.min())
    if longest > N_SAMPLES or shortest < 1:
        wrong = longest if longest > N_SAMPLES else shortest
        raise RecipeError(
            f"an utterance of {wrong / SAMPLE_RATE:.2f} s: Whisper takes up to "
            f"{N_SAMPLES // SAMPLE_RATE} s; cut it into segments"
        )
    positions = torch.arange(speech.shape[1], device=speech.device)
    speech = speech.masked_fill(positions >= lengths[:, None], 0.0)
    lengths = lengths + round(trailing_silence * SAMPLE_RATE)
    lengths = lengths.clamp(round(min_seconds * SAMPLE_RATE), N_SAMPLES)
    longest = int(lengths.max())
    # Half a window of zeros at the end, as a padded utterance has: without it the
    # last frames would mirror the longest utterance and only pad the others.
    padded = F.pad(speech, (0, max(longest - speech.shape[1], 0) + N_FFT))
    frames = (lengths + HOP_LENGTH - 1) // HOP_LENGTH
    window = torch.hann_window(N_FFT, device=speech.device)
    with torch.autocast(speech.device.type, enabled=False):
        spectrum = torch.stft(
            padded.float(), N_FFT, HOP_LENGTH, window=window, return_complex=True
        )
        power = spectrum[..., : int(frames.max())].abs() ** 2
        mel = mel_filters(speech.device, n_mels) @ power
    log = mel.clamp(min=1e-10).log10()
    padding = torch.arange(log.shape[-1], device=log.device) >= frames[:, None]
    top = log.masked_fill(padding[:, None], -torch.inf).amax((1, 2), keepdim=True)
    log = (torch.maximum(log, top - DYNAMIC_RANGE) + 4.0) / 4.0
    return log.masked_fill(padding[:, None], 0.0), frames
