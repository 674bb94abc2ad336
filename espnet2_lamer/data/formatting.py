"""Formatting: data directories whose audio is 16 kHz mono and 2-30 s long."""

import logging
import os
from collections.abc import Callable, Collection, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from espnet2_lamer.constants import RECEPTIVE_FIELD, SAMPLE_RATE
from espnet2_lamer.data.audio import SkippedAudio
from espnet2_lamer.data.audio_fingerprint import Fingerprint
from espnet2_lamer.data.converting import Audio, prepare_audio
from espnet2_lamer.data.segments import read_wavs
from espnet2_lamer.data.sets import read_if_there, write_tables
from espnet2_lamer.data.usable import CHANGES
from espnet2_lamer.errors import RecipeError
from espnet2_lamer.fileio.atomic import atomic_dir
from espnet2_lamer.fileio.datadir import read_table
from espnet2_lamer.fileio.text import text_lines

_TABLES = ("wav.scp", "utt2spk", "utt2lang", "utt2num_samples")
_OPTIONAL_TABLES = ("text", "romanisation", "utt2source")
_COUNTS = ("utterances", "dropped_short", "dropped_long", *CHANGES)
#: Corpus of utterances that ``utt2source`` does not name.
UNNAMED = "-"


@dataclass
class FormattedSet:
    """A data directory in memory.

    ``tables`` maps file names to utterance tables; wav.scp, utt2spk, utt2lang and
    utt2num_samples are complete, others may lack utterances. ``ctm`` has the lines of
    phones.ctm, ``report`` counts per language, ``fingerprints`` those asked for.
    """

    tables: dict[str, dict[str, str]]
    ctm: list[str] = field(default_factory=list)
    report: dict[str, dict[str, float]] = field(default_factory=dict)
    fingerprints: dict[str, Fingerprint] = field(default_factory=dict)

    def write(self, directory: str | Path) -> None:
        """Write the data directory by rename.

        Units of the earlier one go along as ``kept_text.km``: labelling takes over
        those whose audio is the same.
        """
        with atomic_dir(directory) as temporary:
            for name in ("kept_text.km", "text.km"):
                for path in Path(directory).glob(f"{name}*"):
                    if path.is_file():
                        target = temporary / f"kept_{path.name.removeprefix('kept_')}"
                        with suppress(OSError):  # then they are made anew
                            os.link(path, target)
            write_tables(temporary, self.tables)
            if self.ctm:
                lines = "".join(self.ctm)
                (temporary / "phones.ctm").write_text(lines, encoding="utf-8")

    def remove(self, utts: Collection[str]) -> None:
        """Take utterances out, also of the counts of utterances and hours."""
        for utt in utts:
            counts = self.report[self.tables["utt2lang"][utt]]
            counts["utterances"] -= 1
            hours = int(self.tables["utt2num_samples"][utt]) / SAMPLE_RATE / 3600
            counts["hours"] = round(counts["hours"] - hours, 4)
        for name, table in self.tables.items():
            self.tables[name] = {u: v for u, v in table.items() if u not in utts}
        self.ctm = [line for line in self.ctm if line.split(" ", 1)[0] not in utts]

    def hours_by_source(self) -> dict[str, dict[str, dict]]:
        """Return utterances and hours per language and corpus (``utt2source``)."""
        report: dict[str, dict[str, dict]] = {}
        for utt, lang in self.tables["utt2lang"].items():
            source = self.tables["utt2source"].get(utt, UNNAMED)
            empty = {"utterances": 0, "hours": 0}
            entry = report.setdefault(lang, {}).setdefault(source, empty)
            entry["utterances"] += 1
            entry["hours"] += int(self.tables["utt2num_samples"][utt])
        for lang, entries in report.items():
            for entry in entries.values():
                entry["hours"] = round(entry["hours"] / SAMPLE_RATE / 3600, 4)
            report[lang] = dict(sorted(entries.items()))
        return report

    def log(self, name: str) -> None:
        """Log one line per language."""
        for lang, counts in sorted(self.report.items()):
            logging.info(
                "%s %s: %d utterances, %.2f h; dropped %d too short, %d too long; "
                "converted: %d resampled, %d to mono, %d decoded, %d rescaled, %d of "
                "channels that cancel, %d cut out of recordings",
                name,
                lang,
                counts["utterances"],
                counts["hours"],
                *(counts[key] for key in _COUNTS[1:]),
            )


def collect_set(
    data_dirs: Sequence[str | Path],
    audio_dir: str | Path,
    min_s: float,
    max_s: float,
    nj: int = 1,
    keep: Callable[[str], bool] | None = None,
    skipped: SkippedAudio | None = None,
    fingerprints: bool = False,
) -> FormattedSet:
    """Join data directories into one whose audio is ready for training.

    Durations are those of the originals; both limits are kept, as in mHuBERT-147
    (2 <= seconds <= 30). Converted files go to ``<audio_dir>/<name of the data dir>/``.
    ``keep`` tells which utterances to take (None: all); ``skipped`` gets those with
    unusable audio (None: they are an error), and lists those that are shorter than one
    frame of the network, which are left out whatever ``min_s`` is.

    Raises:
        RecipeError: Unusable audio, an utterance id in two data directories, a missing
            table, or nothing between ``min_s`` and ``max_s``.
    """
    data_dirs = [Path(directory) for directory in data_dirs]
    check_unique(data_dirs)
    result = FormattedSet({name: {} for name in (*_TABLES, *_OPTIONAL_TABLES)})
    for data_dir in data_dirs:
        wav_scp = data_dir / "wav.scp"
        wavs = read_wavs(data_dir)
        if keep is not None:
            wavs = {utt: path for utt, path in wavs.items() if keep(utt)}
        utt2lang = read_table(data_dir / "utt2lang", made_by="data preparation")
        missing = [utt for utt in wavs if not utt2lang.get(utt)]
        if missing:
            raise RecipeError(
                f"{data_dir / 'utt2lang'}: no language for {len(missing)} utterances "
                f"of wav.scp, first {missing[0]!r}"
            )
        target = Path(audio_dir) / data_dir.name
        options = nj, skipped, fingerprints, (min_s, max_s)
        found = prepare_audio(wavs, wav_scp, target, *options)
        for utt, audio in found.items():
            _add(result, utt, audio, utt2lang[utt], min_s, max_s)
        # The user's limit would let them pass, but no network can hear them.
        brief = [u for u in found if 0 < found[u].num_samples < RECEPTIVE_FIELD]
        if brief:
            one = f"one frame ({RECEPTIVE_FIELD} samples at 16 kHz)"
            text = "%s: %d clips are shorter than %s and left out, first %s"
            logging.warning(text, wav_scp, len(brief), one, brief[0])
        for utt in brief if skipped else ():
            why = f"shorter than {one}: {found[utt].num_samples}"
            skipped.note(wav_scp, utt, wavs[utt], why)
        usable = dict.fromkeys(u for u in found if u in result.tables["wav.scp"])
        for name in ("utt2spk", *_OPTIONAL_TABLES):
            table = read_if_there(data_dir / name)
            result.tables[name] |= {u: table[u] for u in usable if table.get(u)}
        ctm = data_dir / "phones.ctm"
        if ctm.is_file():
            lines = (line for _, line in text_lines(ctm))
            result.ctm += [line for line in lines if line.split(" ", 1)[0] in usable]
    if not result.tables["wav.scp"]:
        short = sum(counts["dropped_short"] for counts in result.report.values())
        long = sum(counts["dropped_long"] for counts in result.report.values())
        raise RecipeError(
            f"{', '.join(str(d) for d in data_dirs)}: no utterance is left between "
            f"{min_s:g} and {max_s:g} s ({short} shorter, {long} longer); join or cut "
            "utterances (--segment vad cuts a manifest's recordings at pauses), or "
            "change the limits"
        )
    for counts in result.report.values():
        counts["hours"] = round(counts["hours"], 4)
    return result


def check_unique(data_dirs: Sequence[Path]) -> None:
    """Raise when an utterance id is in two of the data directories."""
    owner: dict[str, Path] = {}
    for data_dir in data_dirs:
        wav_scp = data_dir / "wav.scp"
        for utt in read_wavs(data_dir, "data preparation"):
            if utt in owner:
                raise RecipeError(
                    f"{wav_scp}: utterance id {utt!r} is also in {owner[utt]}; ids "
                    "must be unique over all sets: put the corpus name before them"
                )
            owner[utt] = wav_scp


def _add(
    result: FormattedSet, utt: str, audio: Audio, lang: str, min_s: float, max_s: float
) -> None:
    """Count an utterance, and take it in where its length is usable."""
    empty = {**dict.fromkeys(_COUNTS, 0), "hours": 0.0}
    counts = result.report.setdefault(lang, empty)
    long = audio.seconds > max_s
    if long or audio.seconds < min_s or audio.num_samples < RECEPTIVE_FIELD:
        counts["dropped_long" if long else "dropped_short"] += 1
        return
    counts["utterances"] += 1
    counts["hours"] += audio.num_samples / SAMPLE_RATE / 3600
    for name in CHANGES:
        counts[name] += getattr(audio, name)
    result.tables["wav.scp"][utt] = audio.path
    result.tables["utt2num_samples"][utt] = str(audio.num_samples)
    result.tables["utt2lang"][utt] = lang
    # Without speaker information every utterance is a speaker of its own.
    result.tables["utt2spk"][utt] = utt
    if audio.fingerprint is not None:
        result.fingerprints[utt] = audio.fingerprint
