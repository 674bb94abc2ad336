"""What is speech: one rule for the recipe, labelling and bin.extract."""

import numpy as np

from espnet2_lamer.constants import SAMPLE_RATE
from espnet2_lamer.data.audio_decoding import Source, Unusable, decode, full_scale

#: What may be done to a file.
CHANGES = ("resampled", "downmixed", "decoded", "rescaled", "one_channel", "cut")
#: Kinds of samples that can be of any size.
FLOATS = ("FLOAT", "DOUBLE")
_KEPT_AS_THEY_ARE = ("WAV", "WAVEX", "RF64", "FLAC")
# Half a step of 16 bits: quieter files are all zeros when they are converted.
_SILENCE = 2.0**-16
# The average of channels that cancel has less than this share of the power that the
# average of independent ones has.
_CANCELLED = 0.5


def usable_speech(
    source: Source, check: bool = True
) -> tuple[np.ndarray, dict[str, bool]]:
    """Return a file as float32 ``[samples]`` at 16 kHz, mono, and what was changed.

    This is what is speech, for stage 2 and for ``bin.extract``. Floats as large as
    integers are divided by these integers' full scale. Channels are averaged; where the
    average has less than half the power that independent channels would leave, they
    cancel (opposite phase), and the one with the most power is used. ``check`` is that
    of :func:`~espnet2_lamer.data.audio_decoding.decode`; changes are :data:`CHANGES`.

    Raises:
        Unusable: As ``decode``; absurd samples, silence.
    """
    return to_speech(decode(source, check), source)


def to_speech(
    samples: np.ndarray, source: Source
) -> tuple[np.ndarray, dict[str, bool]]:
    """Do so with decoded samples ``[frames, channels]`` of a file or of a part of it.

    Raises:
        Unusable: Absurd samples, silence.
    """
    rate = source.file.samplerate
    changes = dict.fromkeys(CHANGES, False)
    if source.file.subtype in FLOATS:
        scale = full_scale(samples)
        changes["rescaled"] = scale != 1
        samples = samples / np.float32(scale) if changes["rescaled"] else samples
    mono, changes["one_channel"] = to_mono(samples)
    if float(np.ptp(mono)) < _SILENCE:
        raise Unusable("silent: all samples are zero or the same")
    changes |= changes_by_header(source)
    if rate != SAMPLE_RATE:
        import soxr

        mono = soxr.resample(mono, rate, SAMPLE_RATE)
    if mono.size == 0:
        raise Unusable("no samples left at 16 kHz (zero length)")
    peak = float(np.abs(mono).max()) if any(changes.values()) else 0.0
    # The low-pass of resampling can overshoot; 16-bit files would clip it.
    return (mono * (0.999 / peak) if peak > 0.999 else mono), changes


def to_mono(samples: np.ndarray) -> tuple[np.ndarray, bool]:
    """Average the channels of ``[frames, channels]``, or take one where they cancel.

    Returns the samples, and whether they are of one channel of several.
    """
    if samples.shape[1] == 1 or not len(samples):
        return samples[:, 0], False
    # Matrix products: numpy is slow along so short an axis.
    means = np.ones(len(samples), np.float32) @ samples / len(samples)
    covariance = samples.T @ samples / len(samples) - np.outer(means, means)
    power = covariance.diagonal()
    if covariance.sum() < _CANCELLED * power.sum():
        return samples[:, int(power.argmax())], True
    return samples.mean(axis=1, dtype=np.float32), False


def changes_by_header(source: Source) -> dict[str, bool]:
    """Return the changes that a file's header asks for."""
    file = source.file
    return {
        "resampled": file.samplerate != SAMPLE_RATE,
        "downmixed": file.channels > 1,
        "decoded": source.frames is None or file.format not in _KEPT_AS_THEY_ARE,
        "cut": source.start is not None,
    }
