"""Waveforms as users have them, made one batch of floats or refused by reason."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from espnet2_lamer.constants import RECEPTIVE_FIELD, SAMPLE_RATE
from espnet2_lamer.errors import RecipeError

#: One waveform ``[n]``, a padded batch ``[B, n]``, or waveforms of different lengths.
Waveforms = Tensor | np.ndarray | Sequence[Tensor | np.ndarray]
# Full scale is 1: floats above this are no hot recording.
LOUDEST = 16.0
_INT16 = 1.0 / 2**15
_RATES = range(1000, 1_000_001)


def as_batch(
    waveforms: Waveforms,
    lengths: Any = None,
    sampling_rate: float | None = None,
    like: Tensor | None = None,
    check_level: bool = True,
) -> tuple[Tensor, Tensor | None]:
    """Make one padded batch of what a user has.

    Floats of any width have full scale 1; int16 is divided by 32768. A waveform ``[n]``
    becomes a batch of one, a list is padded with zeros.

    Args:
        waveforms: Tensors or numpy arrays, see :data:`Waveforms`.
        lengths: Valid samples ``[B]`` of a batch ``[B, n]``; ``None``: all of them. A
            list has its own.
        sampling_rate: Of the waveforms, in Hz; another one than 16 kHz is converted, as
            the recipe's is (soxr). ``None``: 16 kHz, on the caller's word.
        like: A weight of the model: the batch goes to its device, and half-precision or
            float64 waveforms stay so where they have its type; others become float32.
        check_level: Refuse floats above 16: a model that does not normalise waveforms
            would silently give other states.

    Returns:
        ``[B, n]`` floats at 16 kHz, and samples ``[B]`` on the same device, ``None``
        where every waveform is full.

    Raises:
        RecipeError: Wrong type, shape, lengths or rate, or NaN; the row is named.
    """
    rate = _checked_rate(sampling_rate)
    if isinstance(waveforms, list | tuple):
        if lengths is not None:
            raise RecipeError(
                "lengths: found some beside a list of waveforms, whose lengths are "
                "known; leave them out, or give one padded batch [B, n]"
            )
        rows = [_row(wave, number, like) for number, wave in enumerate(waveforms)]
        if not rows:
            raise RecipeError("waveforms: found an empty list, expected at least one")
        counts = [len(row) for row in rows]
    else:
        batch = _floats(waveforms, "waveforms", like)
        if batch.ndim not in (1, 2) or (batch.ndim == 2 and not len(batch)):
            raise RecipeError(
                f"waveforms: found shape {tuple(batch.shape)}, expected [n], [B, n] or "
                "a list of [n], one channel each"
            )
        _check_orientation(batch)
        batch = batch[None] if batch.ndim == 1 else batch
        counts = _checked_lengths(lengths, batch)
        if rate == SAMPLE_RATE:
            _check_samples(batch, counts, check_level)
            if lengths is None:
                return batch, None
            return batch, torch.tensor(counts, device=batch.device)
        rows = [row[:count] for row, count in zip(batch, counts, strict=True)]
    if rate != SAMPLE_RATE:
        rows = [_resampled(row, rate) for row in rows]
        counts = [len(row) for row in rows]
    batch = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True)
    _check_samples(batch, counts, check_level)
    return batch, torch.tensor(counts, device=batch.device)


def _checked_rate(rate: Any) -> int:
    if rate is None:
        return SAMPLE_RATE
    known = isinstance(rate, int | float | np.number) and not isinstance(rate, bool)
    if not known or rate % 1 != 0:
        raise RecipeError(f"sampling_rate: found {rate!r}, expected a number of Hz")
    if int(rate) not in _RATES:
        raise RecipeError(
            f"sampling_rate: found {rate!r}, expected {_RATES[0]} to {_RATES[-1]} Hz; "
            "16000 is 16 kHz"
        )
    return int(rate)


def _floats(wave: Any, name: str, like: Tensor | None) -> Tensor:
    """Return a tensor of floats, full scale 1, on the device of ``like``."""
    if isinstance(wave, np.ndarray):
        if wave.dtype.kind not in "fiub":
            raise _wrong_type(name, wave.dtype)
        # Another byte order, or negative strides, are none of torch's.
        native = wave.astype(wave.dtype.newbyteorder("="), copy=False)
        if native.dtype.kind == "u" and native.dtype.itemsize > 1:
            raise _wrong_type(name, wave.dtype)
        if native.dtype.kind == "f" and native.dtype.itemsize > 8:
            native = native.astype(np.float64)
        wave = torch.from_numpy(np.array(native, order="C"))
    if not isinstance(wave, Tensor):
        what = f"{type(wave).__name__}"
        more = "a tensor or a numpy array of samples"
        if isinstance(wave, str | bytes) or hasattr(wave, "__fspath__"):
            more += '; read the file first: soundfile.read("x.wav", dtype="float32")'
        raise RecipeError(f"{name}: found {what}, expected {more}")
    if wave.dtype == torch.int16:
        wave = wave.float() * _INT16
    elif not wave.is_floating_point():
        raise _wrong_type(name, wave.dtype)
    wanted = torch.float32
    if like is not None:
        wanted = wave.dtype if wave.dtype == like.dtype else wanted
        wave = wave.to(like.device)
    return wave.detach().to(wanted)


def _wrong_type(name: str, dtype: Any) -> RecipeError:
    return RecipeError(
        f"{name}: found samples of {str(dtype).removeprefix('torch.')}, expected "
        "floats with full scale 1, or int16; divide other integers by their full scale "
        "(int32: 2 ** 31) yourself"
    )


def _row(wave: Any, number: int, like: Tensor | None) -> Tensor:
    name = f"waveform {number + 1} of the list"
    if isinstance(wave, int | float):
        raise RecipeError(
            "waveforms: found a list of numbers, expected a tensor or a numpy array of "
            "samples, or a list of these; numpy.asarray(list) makes one"
        )
    row = _floats(wave, name, like)
    if row.ndim != 1:
        raise RecipeError(
            f"{name}: found shape {tuple(row.shape)}, expected [n], one channel"
        )
    return row


def _check_orientation(batch: Tensor) -> None:
    """Refuse ``[samples, channels]``, which soundfile gives for stereo files."""
    if batch.ndim == 2 and batch.shape[1] < RECEPTIVE_FIELD <= batch.shape[0]:
        raise RecipeError(
            f"waveforms: found shape {tuple(batch.shape)}, which looks like [samples, "
            "channels]; expected [n] or [B, n]: give one channel, or their mean over "
            "the last axis"
        )


def _checked_lengths(lengths: Any, batch: Tensor) -> list[int]:
    size, most = batch.shape
    if lengths is None:
        return [most] * size
    array = torch.as_tensor(lengths).detach().cpu()
    if array.is_floating_point() or array.dtype == torch.bool or array.is_complex():
        raise RecipeError(
            f"lengths: found {str(array.dtype).removeprefix('torch.')}, expected whole "
            "numbers of samples"
        )
    if tuple(array.shape) != (size,):
        raise RecipeError(
            f"lengths: found shape {tuple(array.shape)}, expected [{size}], one for "
            "each waveform"
        )
    counts = array.tolist()
    for row, count in enumerate(counts):
        if not 0 <= count <= most:
            raise RecipeError(
                f"lengths: found {count} samples for waveform {row + 1}, expected 0 to "
                f"{most}, the batch's own"
            )
    return counts


def _check_samples(batch: Tensor, counts: Sequence[int], check_level: bool) -> None:
    """Refuse NaN, and integers stored as floats; padding may hold anything."""
    if not batch.shape[1]:
        return  # too short, as whoever knows how much is needed says
    levels = batch.abs()
    if any(count != batch.shape[1] for count in counts):
        there = torch.tensor(counts, device=batch.device)[:, None]
        valid = torch.arange(batch.shape[1], device=batch.device) < there
        levels = levels.masked_fill(~valid, 0.0)
    for row, peak in enumerate(levels.amax(1).tolist()):
        where = f"waveform {row + 1} of {len(counts)}"
        if not peak < float("inf"):
            raise RecipeError(
                f"{where}: holds NaN or infinite samples; leave it out, or repair it"
            )
        if check_level and peak > LOUDEST:
            raise RecipeError(
                f"{where}: found floats up to {peak:.4g}, expected a full scale of 1, "
                "which counts for this model; divide by the integers' full scale "
                "(32768 for 16 bits)"
            )


def _resampled(row: Tensor, rate: int) -> Tensor:
    import soxr

    samples = row.cpu().float().numpy()
    found = torch.from_numpy(soxr.resample(samples, rate, SAMPLE_RATE))
    return found.to(row.device, row.dtype)
