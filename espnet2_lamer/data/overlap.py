"""Overlap: pretraining clips that are also in an evaluation set."""

import logging
import os
import re
import unicodedata
from bisect import bisect_left, bisect_right
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from espnet2_lamer.data.audio import durations, over_files, read_16k
from espnet2_lamer.data.audio_decoding import Unusable, open_audio
from espnet2_lamer.data.audio_fingerprint import (
    DURATION_TOLERANCE,
    Fingerprint,
    FingerprintIndex,
    fingerprint,
)
from espnet2_lamer.data.corpora import EVAL_DIR
from espnet2_lamer.data.recordings import cut
from espnet2_lamer.data.segments import (
    Times,
    by_recording,
    read_wavs,
    recording_and_times,
)
from espnet2_lamer.data.sets import Utterance, read_if_there
from espnet2_lamer.data.usable import to_speech
from espnet2_lamer.fileio.atomic import write_text

#: Transcripts are compared between clips whose durations differ by at most this.
TEXT_TOLERANCE = 0.05
_COMMON_VOICE = re.compile(r"common_voice_[A-Za-z-]+_\d+")
# Fewer digits are a running number that any corpus may have.
_FEWEST_DIGITS = 6
# Durations are multiples of a sample; a microsecond is none.
_ROUNDING = 1e-6
_HEADER = (
    "utt_id lang matched_by evaluation_set evaluation_utt_id seconds "
    "evaluation_seconds distance"
).split()


@dataclass(frozen=True, slots=True)
class Clip:
    """One utterance that is looked up, or looked for."""

    utt_id: str
    path: str
    lang: str
    seconds: float
    text: str = ""
    sets: tuple[str, ...] = ()  # that have this file, such as eval/fleurs/test_eng


@dataclass(frozen=True)
class Overlap:
    """A pretraining clip and the evaluation clip it equals."""

    clip: Clip
    found: Clip
    by: str  # id, text or audio
    distance: float | None = None  # of the fingerprints: share of differing bits


def evaluation_dirs(data_dir: str | Path, langs: Sequence[str]) -> list[Path]:
    """Return the existing dev and test sets of evaluation in these languages.

    Training sets of heads are none: nothing is measured on them.
    """
    return [
        wav_scp.parent
        for lang in langs
        for split in ("dev", "test")
        for folder in ("", "asr_", f"{EVAL_DIR}/*/")
        for wav_scp in sorted(Path(data_dir).glob(f"{folder}{split}_{lang}/wav.scp"))
    ]


def read_evaluation(
    data_dir: str | Path,
    langs: Sequence[str],
    nj: int = 1,
    lists: Mapping[str, Iterable[Utterance]] | None = None,
) -> list[Clip]:
    """Read :func:`evaluation_dirs`, every file once, in ``nj`` processes.

    Files that cannot be read are warned about and left out here, as they are where
    evaluation sets are formatted. ``lists`` are evaluation sets that are no data
    directories yet, by name.
    """
    data_dir = Path(data_dir)
    # What each file is called, and where: a set and the utterance in it.
    entries: dict[str, list[tuple[str, Utterance]]] = defaultdict(list)
    for folder in evaluation_dirs(data_dir, langs):
        name = folder.relative_to(data_dir).as_posix()
        lang = name.rpartition("_")[2]
        texts = read_if_there(folder / "text")
        for utt, path in read_wavs(folder).items():
            utterance = Utterance(utt, path, lang, text=texts.get(utt, ""))
            entries[os.path.abspath(path)].append((name, utterance))
    for name, utterances in (lists or {}).items():
        for utterance in utterances:
            entries[os.path.abspath(utterance.path)].append((name, utterance))
    clips, problems = [], []
    wavs = {path: path for path in entries}
    for path, seconds, problem in durations(wavs, nj, "evaluation sets"):
        if problem:
            problems.append(f"{path}: {problem}")
            continue
        names, found = zip(*entries[path], strict=True)
        words = next((known.text for known in found if known.text), "")
        utt, lang = found[0].utt_id, found[-1].lang
        clips.append(Clip(utt, path, lang, seconds, words, names))
    if problems:
        text = "%d evaluation files cannot be read, so overlap with them is not seen; "
        logging.warning(text + "first: %s", len(problems), problems[0])
    return clips


def clip_ids(utt_id: str, path: str) -> tuple[set[str], set[str]]:
    """Return the sure and the likely names by which a clip can be recognised elsewhere.

    Sure are the file itself, and CommonVoice's clip number wherever it stands in the id
    or the file's name. Likely are the id and the file's name where they have 6 digits
    or more; language, duration and transcripts must agree as well, since one number may
    be in two corpora.
    """
    # A recording's name is that of all its parts.
    whole = recording_and_times(path)[1] is None
    stem = Path(path).stem if whole else utt_id
    sure = {os.path.abspath(path)}
    for name in (utt_id, stem):
        sure.update(_COMMON_VOICE.findall(name))
    likely = {n for n in (utt_id, stem) if sum(map(str.isdigit, n)) >= _FEWEST_DIGITS}
    return sure, likely


def normalised(text: str) -> str:
    """Return the letters and digits of a transcript, in one case."""
    text = unicodedata.normalize("NFKC", text).casefold()
    return "".join(c for c in text if c.isalnum())


def match_names(clips: Sequence[Clip], evaluation: Sequence[Clip]) -> list[Overlap]:
    """Find clips by id, else by language, transcript and duration.

    Another speaker's reading of the same sentence in the same time (0.05 s) cannot be
    told from a copy here and is listed, too.
    """
    by_id: dict[str, list[Clip]] = defaultdict(list)
    by_text: dict[tuple[str, str], list[Clip]] = defaultdict(list)
    for known in evaluation:
        for name in set().union(*clip_ids(known.utt_id, known.path)):
            by_id[name].append(known)
        if text := normalised(known.text):
            by_text[known.lang, text].append(known)
    overlaps = []
    for clip in clips:
        sure, likely = clip_ids(clip.utt_id, clip.path)
        found = [
            known
            for name in sure | likely
            for known in by_id.get(name, ())
            if name in sure or _may_be(clip, known)
        ]
        by = "id"
        if not found and clip.text:
            by = "text"
            same = by_text.get((clip.lang, normalised(clip.text)), ())
            found = [known for known in same if _agree(clip, known, TEXT_TOLERANCE)]
        unique = {known.path: known for known in found}
        overlaps += [Overlap(clip, known, by) for _, known in sorted(unique.items())]
    return overlaps


def _agree(first: Clip, second: Clip, tolerance: float) -> bool:
    return abs(first.seconds - second.seconds) <= tolerance + _ROUNDING


def _may_be(first: Clip, second: Clip) -> bool:
    """Whether clips with a name in common agree in language, duration and words."""
    texts = {normalised(clip.text) for clip in (first, second)} - {""}
    alike = first.lang == second.lang and len(texts) < 2
    return alike and _agree(first, second, DURATION_TOLERANCE)


def match_audio(
    clips: Sequence[Clip],
    prints: Mapping[str, Fingerprint],
    evaluation: Sequence[Clip],
    nj: int = 1,
) -> list[Overlap]:
    """Find clips by the fingerprints of their audio.

    Only clips of one language whose durations differ by at most 0.1 s are compared, and
    only files of ``evaluation`` with such a duration are read, in ``nj`` processes.
    ``prints`` holds fingerprints of all ``clips`` with frames 0.1 s apart.
    """
    candidates = _with_neighbours(sorted(evaluation, key=lambda c: c.path), clips)
    wavs = {str(i): clip.path for i, clip in enumerate(candidates)}
    known: dict[str, list[tuple[Clip, Fingerprint]]] = defaultdict(list)
    for i, print_ in sorted(_fingerprints(wavs, nj), key=lambda found: int(found[0])):
        known[candidates[int(i)].lang].append((candidates[int(i)], print_))
    indices = {
        lang: FingerprintIndex([p for _, p in own], [clip.seconds for clip, _ in own])
        for lang, own in known.items()
    }
    return [
        Overlap(clip, known[clip.lang][i][0], "audio", distance)
        for clip in clips
        if clip.lang in indices
        for i, distance in indices[clip.lang].search(prints[clip.utt_id], clip.seconds)
    ]


def _fingerprints(
    wavs: Mapping[str, str], nj: int
) -> Iterator[tuple[str, Fingerprint]]:
    """Yield those of files and of parts; a recording is decoded once for all its parts.

    What cannot be read was warned about when it was listed, and is left out.
    """
    parts = by_recording(wavs.items())
    whole = {utt: p for utt, p in wavs.items() if recording_and_times(p)[1] is None}
    for utt, print_, problem in over_files(_fingerprint, whole, nj, "fingerprints"):
        if not problem:
            yield utt, print_
    calls = ({path: path for path in parts}, nj, "fingerprints", parts)
    for _, found, problem in over_files(_part_fingerprints, *calls, each=1):
        yield from () if problem else found


def _fingerprint(utt: str, path: str) -> Fingerprint:
    return fingerprint(read_16k(path))


def _part_fingerprints(
    _: str, recording: str, parts: Mapping[str, Mapping[str, Times]]
) -> list[tuple[str, Fingerprint]]:
    found = []
    with open_audio(recording) as source:
        for utt, piece, samples in cut(source, parts[recording], check=False):
            with suppress(Unusable):
                if not isinstance(samples, Unusable):
                    found.append((utt, fingerprint(to_speech(samples, piece)[0])))
    return found


def _with_neighbours(clips: Sequence[Clip], others: Sequence[Clip]) -> list[Clip]:
    """Return those clips whose language and duration some other has."""
    durations: dict[str, list[float]] = defaultdict(list)
    for other in sorted(others, key=lambda clip: clip.seconds):
        durations[other.lang].append(other.seconds)
    reach = DURATION_TOLERANCE + _ROUNDING

    def near(clip: Clip) -> int:
        seconds = durations[clip.lang]
        below = bisect_left(seconds, clip.seconds - reach)
        return bisect_right(seconds, clip.seconds + reach) - below

    return [clip for clip in clips if near(clip)]


def write_overlaps(path: str | Path, overlaps: Sequence[Overlap]) -> None:
    """Write a TSV with a line per pretraining clip and evaluation set, sorted."""
    rows = {
        (
            o.clip.utt_id,
            o.clip.lang,
            o.by,
            name,
            o.found.utt_id,
            f"{o.clip.seconds:.3f}",
            f"{o.found.seconds:.3f}",
            "" if o.distance is None else f"{o.distance:.3f}",
        )
        for o in overlaps
        for name in o.found.sets
    }
    ordered = sorted(rows, key=lambda row: [value.encode() for value in row])
    write_text(path, "".join("\t".join(r) + "\n" for r in (_HEADER, *ordered)))


def overlap_counts(overlaps: Sequence[Overlap]) -> Mapping[str, dict[str, int]]:
    """Return per language the number of clips found by id, text and audio."""
    found = {(o.clip.lang, o.clip.utt_id): o.by for o in overlaps}
    counts: dict[str, dict[str, int]] = {}
    for (lang, _), by in sorted(found.items()):
        counts.setdefault(lang, {"id": 0, "text": 0, "audio": 0})[by] += 1
    return counts
