"""Stage 2's formatting: data directories whose audio is 16 kHz mono and 2-30 s."""

import logging
from collections.abc import Callable, Collection, Container, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from espnet2_lamer.data.audio import SAMPLE_RATE, Audio, prepare_audio
from espnet2_lamer.data.audio_fingerprint import Fingerprint
from espnet2_lamer.data.skipped import SkippedAudio
from espnet2_lamer.errors import RecipeError
from espnet2_lamer.fileio.atomic import atomic_dir
from espnet2_lamer.fileio.datadir import read_table, write_spk2utt, write_table
from espnet2_lamer.fileio.text import text_lines

_OPTIONAL_TABLES = ("text", "romanisation", "utt2source")
_COUNTS = (
    *("utterances", "dropped_short", "dropped_long"),
    *("resampled", "downmixed", "decoded"),
)


@dataclass
class FormattedSet:
    """A data directory in memory.

    Attributes:
        tables: File name to utterance table; wav.scp, utt2spk, utt2lang and
            utt2num_samples are complete, others may lack utterances.
        ctm: Lines of phones.ctm.
        report: Per language: utterances, hours, dropped_short, dropped_long, and of
            the kept ones resampled, downmixed, decoded.
        fingerprints: Of the kept ones, if asked for.
    """

    tables: dict[str, dict[str, str]]
    ctm: list[str]
    report: dict[str, dict[str, float]]
    fingerprints: dict[str, Fingerprint] = field(default_factory=dict)

    def write(self, directory: str | Path) -> None:
        """Write the data directory by rename."""
        with atomic_dir(directory) as temporary:
            for name, table in self.tables.items():
                if name == "utt2spk":
                    write_spk2utt(temporary, table)
                elif table:
                    write_table(temporary / name, table)
            if self.ctm:
                (temporary / "phones.ctm").write_text(
                    "".join(self.ctm), encoding="utf-8"
                )

    def remove(self, utts: Collection[str]) -> None:
        """Take utterances out, also of the counts of utterances and hours."""
        for utt in utts:
            counts = self.report[self.tables["utt2lang"][utt]]
            counts["utterances"] -= 1
            samples = int(self.tables["utt2num_samples"][utt])
            counts["hours"] = round(counts["hours"] - samples / SAMPLE_RATE / 3600, 4)
        for name, table in self.tables.items():
            self.tables[name] = {u: v for u, v in table.items() if u not in utts}
        self.ctm = [line for line in self.ctm if line.split(" ", 1)[0] not in utts]


def format_set(
    data_dirs: Sequence[str | Path],
    out_dir: str | Path,
    audio_dir: str | Path,
    min_s: float = 2.0,
    max_s: float = 30.0,
    nj: int = 1,
    keep: Container[str] | None = None,
) -> dict[str, dict[str, float]]:
    """Join data directories into one whose audio is ready for training.

    Args:
        data_dirs: Kaldi-style, each with wav.scp and utt2lang at least.
        out_dir: Written by rename, with ``utt2num_samples``.
        audio_dir: Converted files go to ``<audio_dir>/<name of the data dir>/``.
        min_s: Shortest utterance in seconds. max_s: longest.
        nj: Processes.
        keep: Only these utterances; None: all.

    Returns:
        Per language the counts of :class:`FormattedSet`.

    Raises:
        RecipeError: Unusable audio, an utterance id in two data directories, a missing
            table, or nothing between ``min_s`` and ``max_s``.
    """
    chosen = None if keep is None else keep.__contains__
    formatted = collect_set(data_dirs, audio_dir, min_s, max_s, nj, chosen)
    formatted.write(out_dir)
    log_report(str(out_dir), formatted.report)
    return formatted.report


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
    """Do the work of :func:`format_set` without writing the data directory.

    Durations are those of the originals; both limits are kept, as in mHuBERT-147
    (2 <= seconds <= 30). With ``skipped``, utterances with unusable audio go there and
    are left out; without, they are an error.
    """
    result = FormattedSet(
        {
            name: {}
            for name in (
                *("wav.scp", "utt2spk", "utt2lang", "utt2num_samples"),
                *_OPTIONAL_TABLES,
            )
        },
        [],
        {},
    )
    check_unique([Path(d) for d in data_dirs])
    for data_dir in map(Path, data_dirs):
        target = Path(audio_dir) / data_dir.name
        read = partial(
            prepare_audio,
            audio_dir=target,
            nj=nj,
            skipped=skipped,
            fingerprints=fingerprints,
        )
        _add(result, data_dir, read, min_s, max_s, keep)
    if not result.tables["wav.scp"]:
        short = sum(counts["dropped_short"] for counts in result.report.values())
        long = sum(counts["dropped_long"] for counts in result.report.values())
        raise RecipeError(
            f"{', '.join(str(d) for d in data_dirs)}: no utterance is left between "
            f"{min_s:g} and {max_s:g} s ({short} shorter, {long} longer); join or cut "
            "utterances, or change the limits"
        )
    for counts in result.report.values():
        counts["hours"] = round(counts["hours"], 4)
    return result


def check_unique(data_dirs: Sequence[Path]) -> None:
    """Raise when an utterance id is in two of the data directories."""
    owner: dict[str, Path] = {}
    for data_dir in data_dirs:
        wav_scp = data_dir / "wav.scp"
        for utt in read_table(wav_scp, made_by="stage 1"):
            if utt in owner:
                raise RecipeError(
                    f"{wav_scp}: utterance id {utt!r} is also in {owner[utt]}; ids "
                    "must be unique over all sets: put the corpus name before them"
                )
            owner[utt] = wav_scp


def _add(result, data_dir, read, min_s, max_s, keep) -> None:
    wav_scp = data_dir / "wav.scp"
    wavs = read_table(wav_scp, made_by="stage 1")
    if keep is not None:
        wavs = {utt: path for utt, path in wavs.items() if keep(utt)}
    utt2lang = read_table(data_dir / "utt2lang", made_by="stage 1")
    missing = [utt for utt in wavs if not utt2lang.get(utt)]
    if missing:
        raise RecipeError(
            f"{data_dir / 'utt2lang'}: no language for {len(missing)} utterances of "
            f"wav.scp, first {missing[0]!r}"
        )
    optional = {}
    for name in (*_OPTIONAL_TABLES, "utt2spk"):
        path = data_dir / name
        optional[name] = read_table(path) if path.is_file() else {}
    for utt, audio in read(wavs, wav_scp).items():
        if not _count(result.report, utt2lang[utt], audio, min_s, max_s):
            continue
        tables = result.tables
        if audio.fingerprint is not None:
            result.fingerprints[utt] = audio.fingerprint
        tables["wav.scp"][utt] = audio.path
        tables["utt2num_samples"][utt] = str(audio.num_samples)
        tables["utt2lang"][utt] = utt2lang[utt]
        # Without speaker information every utterance is a speaker of its own.
        tables["utt2spk"][utt] = optional["utt2spk"].get(utt) or utt
        for name in _OPTIONAL_TABLES:
            if optional[name].get(utt):
                tables[name][utt] = optional[name][utt]
    ctm = data_dir / "phones.ctm"
    if ctm.is_file():
        kept = result.tables["wav.scp"]
        lines = (line for _, line in text_lines(ctm))
        result.ctm += [line for line in lines if line.split(" ", 1)[0] in kept]


def _count(report: dict, lang: str, audio: Audio, min_s: float, max_s: float) -> bool:
    counts = report.setdefault(lang, {**dict.fromkeys(_COUNTS, 0), "hours": 0.0})
    seconds = audio.seconds
    if seconds < min_s:
        counts["dropped_short"] += 1
        return False
    if seconds > max_s:
        counts["dropped_long"] += 1
        return False
    counts["utterances"] += 1
    counts["hours"] += audio.num_samples / SAMPLE_RATE / 3600
    for name in ("resampled", "downmixed", "decoded"):
        counts[name] += getattr(audio, name)
    return True


def log_report(name: str, report: dict[str, dict[str, float]]) -> None:
    """Log one line per language."""
    for lang, counts in sorted(report.items()):
        logging.info(
            "%s %s: %d utterances, %.2f h; dropped %d too short, %d too long; "
            "converted: %d resampled, %d to mono, %d decoded",
            name,
            lang,
            counts["utterances"],
            counts["hours"],
            counts["dropped_short"],
            counts["dropped_long"],
            counts["resampled"],
            counts["downmixed"],
            counts["decoded"],
        )
