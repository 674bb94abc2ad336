"""Audio files of a data directory: many at a time, their lengths, and unusable ones."""

import logging
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from espnet2_lamer.data.audio_decoding import (
    OVERSHOT,
    Unusable,
    duration,
    open_audio,
    outside,
)
from espnet2_lamer.data.segments import (
    Times,
    by_recording,
    recording_and_times,
)
from espnet2_lamer.data.usable import (
    usable_speech,
)
from espnet2_lamer.errors import RecipeError
from espnet2_lamer.fileio.atomic import write_text

# A process pays from this many files on: its start takes as long as reading them.
_FILES_PER_PROCESS = 500
_BATCH = 16
_LISTED = 10
# In a smaller set one file is a tenth of the data or more.
_ONE_IS_FINE_FROM = 10


def allowed_bad(files: int, percent: float) -> int:
    """Return how many of a set's files may be unusable.

    ``percent`` of them, rounded down, but at least one in a set of 10 files or more; 0
    per cent allows none.
    """
    if percent <= 0:
        return 0
    return max(int(files * percent / 100), int(files >= _ONE_IS_FINE_FROM))


def listed(lines: Sequence[str]) -> str:
    """Put the first ten lines, and how many there are besides, below a message."""
    left = len(lines) - _LISTED
    shown = [*lines[:_LISTED], f"... and {left} more"] if left > 0 else lines
    return "\n".join(f"  {line}" for line in shown)


def _refuse(wav_scp, wavs: Mapping[str, str], problems: Mapping[str, str], more=""):
    lines = listed([f"{utt} {wavs[utt]}: {why}" for utt, why in problems.items()])
    raise RecipeError(
        f"{wav_scp}: {len(problems)} of {len(wavs)} audio files cannot be used; repair "
        f"them or take them out of the corpus{more}:\n{lines}"
    )


class SkippedAudio:
    """Collects what is skipped, and stops the run when a set has too much of it.

    ``report`` is a TSV with a line per skipped utterance, sorted, which is also written
    before the run is stopped; for ``max_percent`` see :func:`allowed_bad`.
    """

    def __init__(self, report: str | Path, max_percent: float = 1.0) -> None:
        self.report = Path(report)
        self.max_percent = max_percent
        self._rows: list[tuple[str, str, str, str]] = []
        self._noted: list[tuple[str, str, str, str]] = []
        self._files: Counter[str] = Counter()

    def add(
        self, wav_scp: str | Path, wavs: Mapping[str, str], problems: Mapping[str, str]
    ) -> None:
        """Take in what one check of a set found: utterance id to reason.

        Raises:
            RecipeError: Too many of these files, or of the set's in all checks.
        """
        # The folder of wav.scp names the set.
        name = Path(wav_scp).parent.name
        self._rows += [(name, utt, wavs[utt], why) for utt, why in problems.items()]
        # A later check of the same set leaves out what an earlier one found.
        self._files[name] = max(self._files[name], len(wavs))
        allowed = allowed_bad(len(wavs), self.max_percent)
        in_all = allowed_bad(self._files[name], self.max_percent)
        if problems and (len(problems) > allowed or self.counts[name] > in_all):
            self.write()
            more = (
                f" ({self.report} lists all; --max_bad_audio {self.max_percent:g} lets "
                f"{allowed} of {len(wavs)} pass)"
            )
            _refuse(wav_scp, wavs, problems, more)

    def note(self, wav_scp: str | Path, utt: str, path: str, why: str) -> None:
        """List what a rule leaves out, which is not the file's fault."""
        self._noted.append((Path(wav_scp).parent.name, utt, path, why))

    def reasons(self, name: str) -> dict[str, str]:
        """Return utterance id to reason of a set."""
        return {utt: why for of, utt, _, why in self._rows if of == name}

    @property
    def counts(self) -> Counter[str]:
        """Skipped utterances by set."""
        return Counter(name for name, *_ in self._rows)

    def write(self) -> None:
        """Write the report and log the counts."""
        lines = [
            "\t".join(" ".join(value.splitlines()) for value in row) + "\n"
            for row in sorted(
                [*self._rows, *self._noted], key=lambda row: [v.encode() for v in row]
            )
        ]
        write_text(self.report, "set\tutt_id\tpath\treason\n" + "".join(lines))
        text = "%s: %d of %d utterances skipped because their audio cannot be used, "
        for name, count in sorted(self.counts.items()):
            figures = name, count, self._files[name], self.report
            logging.warning(text + "see %s", *figures)


def header_seconds(
    wavs: Mapping[str, str],
    wav_scp: str | Path,
    nj: int = 1,
    skipped: SkippedAudio | None = None,
) -> dict[str, float]:
    """Return each file's duration in seconds by its header or, for MP3, its frames.

    Raises:
        RecipeError: Files are missing, empty or not audio: any without ``skipped``, too
            many with it.
    """
    return usable_alone(durations(wavs, nj), wavs, wav_scp, skipped)


def durations(
    wavs: Mapping[str, str], nj: int, description: str = "read durations"
) -> Iterator[tuple[str, float | None, str]]:
    """Yield what :func:`over_files` does for durations; recordings are opened once."""
    parts = by_recording(wavs.items())
    whole = {u: p for u, p in wavs.items() if recording_and_times(p)[1] is None}
    yield from over_files(file_seconds, whole, nj, description)
    paths = {path: path for path in parts}
    lengths = over_files(file_seconds, paths, nj, description) if parts else ()
    for path, seconds, problem in lengths:
        for utt, times in parts[path].items():
            inside, why = (None, problem) if problem else part_seconds(times, seconds)
            yield utt, inside, why


def read_16k(path: str) -> np.ndarray:
    """Return a whole file as :func:`usable_speech` does, hardly checked.

    Raises:
        Unusable: It cannot be read, or holds NaN.
    """
    with open_audio(path) as source:
        return usable_speech(source, check=False)[0]


def over_files(
    function: Callable[..., Any],
    wavs: Mapping[str, str],
    nj: int,
    description: str,
    *args: Any,
    each: int = _FILES_PER_PROCESS,
) -> Iterator[tuple[str, Any, str]]:
    """Call ``function(utt, path, *args)`` for every file, in ``nj`` processes.

    A process is worth its start from ``each`` files on: 1 for long recordings.

    Yields:
        Utterance, result and an empty string, or None and why the file is unusable; in
        the order of ``wavs``.
    """
    from joblib import Parallel, delayed
    from tqdm import tqdm

    nj = min(nj, max(1, len(wavs) // each))
    calls = [(function, utt, path, *args) for utt, path in wavs.items()]
    if nj == 1:
        results = (_try(*call) for call in calls)
    else:
        batch = min(_BATCH, each)
        parallel = Parallel(n_jobs=nj, batch_size=batch, return_as="generator")
        results = parallel(delayed(_try)(*call) for call in calls)
    yield from tqdm(results, description, len(calls), unit="file", disable=None)


def _try(function: Callable[..., Any], utt: str, path: str, *args: Any) -> tuple:
    try:
        return utt, function(utt, path, *args), ""
    except Unusable as error:
        return utt, None, str(error)


def usable_alone(items, wavs, wav_scp, skipped: SkippedAudio | None) -> dict:
    """Return what :func:`over_files` made of usable files; the others are skipped.

    Raises:
        RecipeError: Some are not usable: any without ``skipped``, too many with it.
    """
    results, problems = {}, {}
    for utt, result, problem in items:
        if problem:
            problems[utt] = problem
        else:
            results[utt] = result
    if skipped is not None:
        skipped.add(wav_scp, wavs, problems)
    elif problems:
        _refuse(wav_scp, wavs, problems)
    return results


def file_seconds(utt: str, path: str) -> float:
    """Return one duration; for :func:`over_files`."""
    with open_audio(path) as source:
        return duration(source)


def part_seconds(times: Times, length: float) -> tuple[float | None, str]:
    """Return a part's duration in a recording of ``length`` seconds, or what is wrong.

    >>> part_seconds((1.0, None), 4.0)
    (3.0, '')
    """
    start, end = times
    if start >= length or (end is not None and end > length + OVERSHOT):
        return None, outside(times, length)
    return min(length if end is None else end, length) - start, ""
