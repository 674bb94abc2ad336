"""Read formatted utterances for the teacher and describe the files they come from."""

from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np

from espnet2_lamer.constants import SAMPLE_RATE
from espnet2_lamer.data.audio import file_seconds
from espnet2_lamer.data.audio_decoding import Unusable, open_audio
from espnet2_lamer.data.usable import usable_speech
from espnet2_lamer.errors import RecipeError
from espnet2_lamer.fileio.datadir import read_table
from espnet2_lamer.fileio.prints import file_prints


def read_speech(utt: str, path: str) -> np.ndarray:
    """Return the samples of one utterance, float32 ``[n]`` at 16 kHz.

    Raises RecipeError where the file is not that, or stage 2 would not let it pass.
    """
    try:
        with open_audio(path) as source:
            samples, changes = usable_speech(source)
            rate, channels = source.file.samplerate, source.file.channels
    except Unusable as error:
        raise _unreadable(utt, path, error) from error
    if rate != SAMPLE_RATE or channels > 1 or changes["rescaled"]:
        scale = ", of integers as floats" if changes["rescaled"] else ""
        raise RecipeError(
            f"{path}: utterance {utt!r} has {channels} channel(s) at {rate} Hz{scale}, "
            f"expected one at {SAMPLE_RATE} Hz; run the audio formatting stage"
        )
    return samples


def count_samples(utt: str, path: str) -> int:
    """Number of samples by the file's header, or counted where it does not say."""
    try:
        return round(file_seconds(utt, path) * SAMPLE_RATE)
    except Unusable as error:
        raise _unreadable(utt, path, error) from error


def _unreadable(utt: str, path: str, error: Exception) -> RecipeError:
    return RecipeError(
        f"{path}: utterance {utt!r} cannot be used: {error}; "
        "remove it from wav.scp or run the audio formatting stage again"
    )


def audio_rows(utts: Iterable[str], wav_scp: Mapping[str, str]) -> list[list]:
    """``[utt, path, print]`` of each utterance: names the work of a resumable run.

    Raises:
        RecipeError: A file does not exist.
    """
    utts = list(utts)
    prints = file_prints(wav_scp[utt] for utt in utts).tolist()
    rows = [[utt, wav_scp[utt], n] for utt, n in zip(utts, prints, strict=True)]
    for utt, path, number in rows:
        if not number:
            raise RecipeError(
                f"{path}: audio of utterance {utt!r} not found; "
                "correct wav.scp or run the audio formatting stage"
            )
    return rows


def read_wav_scp(path: str | Path) -> dict[str, str]:
    """Read ``wav.scp`` sorted by utterance id in byte order.

    Raises:
        RecipeError: The file is missing, empty, or holds a shell pipe.
    """
    table = read_table(path, made_by="audio formatting")
    if not table:
        raise RecipeError(f"{path}: no utterances; expected `utt path` lines")
    for utt, value in table.items():
        if value.endswith("|"):
            raise RecipeError(
                f"{path}: utterance {utt!r} is a shell pipe; expected a path, "
                "run the audio formatting stage"
            )
    return {utt: table[utt] for utt in sorted(table, key=str.encode)}
