"""Utterances whose audio cannot be used: listed, skipped up to a share of each set."""

import logging
from collections import Counter
from collections.abc import Mapping
from pathlib import Path

from espnet2_lamer.errors import RecipeError
from espnet2_lamer.fileio.atomic import write_text

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


def refuse(
    wav_scp: str | Path,
    wavs: Mapping[str, str],
    problems: Mapping[str, str],
    more: str = "",
) -> None:
    """Raise ``RecipeError`` for unusable audio: all counted, the first 10 named."""
    listed = list(problems.items())[:_LISTED]
    lines = [f"  {utt} {wavs[utt]}: {problem}" for utt, problem in listed]
    if len(problems) > len(listed):
        lines.append(f"  ... and {len(problems) - len(listed)} more")
    raise RecipeError(
        f"{wav_scp}: {len(problems)} of {len(wavs)} audio files cannot be used; repair "
        f"them or take them out of the corpus{more}:\n" + "\n".join(lines)
    )


class SkippedAudio:
    """Collects what is skipped, and stops the run when a set has too much of it.

    Args:
        report: TSV with a line per skipped utterance, sorted; written by
            :meth:`write`, and before the run is stopped.
        max_percent: Most unusable files of a set, see :func:`allowed_bad`.
    """

    def __init__(self, report: str | Path, max_percent: float = 1.0) -> None:
        self.report = Path(report)
        self.max_percent = max_percent
        self._rows: list[tuple[str, str, str, str]] = []
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
            refuse(wav_scp, wavs, problems, more)

    @property
    def counts(self) -> Counter[str]:
        """Skipped utterances by set."""
        return Counter(name for name, *_ in self._rows)

    def write(self) -> None:
        """Write the report and log the counts."""
        lines = [
            "\t".join(" ".join(value.splitlines()) for value in row) + "\n"
            for row in sorted(self._rows, key=lambda row: [v.encode() for v in row])
        ]
        write_text(self.report, "set\tutt_id\tpath\treason\n" + "".join(lines))
        for name, count in sorted(self.counts.items()):
            logging.warning(
                "%s: %d of %d utterances skipped because their audio cannot be used, "
                "see %s",
                name,
                count,
                self._files[name],
                self.report,
            )
