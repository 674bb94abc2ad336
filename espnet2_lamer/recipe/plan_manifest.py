"""What a manifest will give, before stage 1: read and divided in memory."""

import io
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import soundfile

from espnet2_lamer.data.audio import durations, over_files
from espnet2_lamer.data.division import divide
from espnet2_lamer.data.languages import language_code
from espnet2_lamer.data.segmentation import Cuts, cut_at_pauses, hear
from espnet2_lamer.data.segmented_rows import WAYS, rows_of_table
from espnet2_lamer.data.segments import part_of
from espnet2_lamer.data.sets import SPLITS, Utterance
from espnet2_lamer.data.sources import read_sources
from espnet2_lamer.data.sources.rows import Reading
from espnet2_lamer.data.sources.source import Source, parse_sources
from espnet2_lamer.data.sources.stored_audio import AudioStore
from espnet2_lamer.errors import RecipeError
from espnet2_lamer.recipe.options import Options
from espnet2_lamer.recipe.plan_parts import Part, Speech, lengths_of

# Recordings that are heard to know how much of them is speech, and seconds of each.
_HEARD, _EACH = 8, 120.0


class _Weighed(AudioStore):
    """Takes the length of what lies in archives, and writes nothing."""

    def __init__(self) -> None:
        super().__init__("audio")
        self.seconds: dict[str, float] = {}
        self.problems: dict[str, str] = {}
        self.bytes = 0

    def open(self, source: Source, archives: Sequence[Path]) -> None:
        pass

    def add(self, utt_id: str, data: bytes, suffix: str, where: str) -> str:
        place = f"{where}: {utt_id}"
        self.bytes += len(data)
        try:
            info = soundfile.info(io.BytesIO(data))
            self.seconds[place] = info.frames / info.samplerate
        except soundfile.SoundFileError:
            self.problems[place] = "audio that cannot be read, in an archive"
        return place


def of_manifest(options: Options, alone: bool) -> Speech:
    """Count the speech of ``--manifest``; of several corpora (not ``alone``) one.

    With ``--segment vad`` two minutes of some recordings are heard, and the share and
    the pieces of speech in them stand for all.

    Raises:
        RecipeError: What stage 1 would refuse to read, or a dataset that is not here.
    """
    sources = parse_sources(options.manifest)
    for source in sources:
        if source.kind == "datasets" and not source.files():
            raise RecipeError(
                f"--plan true: {source.path} is a dataset of the hub, and a plan "
                "downloads nothing: run stage 1 alone (--stop_stage 1), then plan again"
            )
    if options.segment not in WAYS:
        raise RecipeError(
            f"--segment: found {options.segment!r}, expected one of {' '.join(WAYS)}"
        )
    store, langs = _Weighed(), [language_code(x, "--new_langs") for x in options.langs]
    rows = read_sources(sources, Reading(store, langs), not alone)
    rows = [row for row in rows if row.lang in langs]
    rows = [row for row in rows if row.source not in options.exclude_sources]
    remarks, recordings = [], 0.0
    if options.segment == "file":
        beside = Path(sources[0].path if len(sources) == 1 else options.manifest)
        named = rows_of_table(rows, beside, options.segments)
        rows = [part for row in rows for part in named.get(row.utt_id, [])]
    elif options.segment == "vad":
        rows, recordings, remarks = _cut(rows, store, options)
    divide(rows, options.seed)
    parts: dict[str, dict[str, Part]] = {
        lang: {split: _part(rows, lang, split, store, options.nj) for split in SPLITS}
        for lang in dict.fromkeys(row.lang for row in rows)
    }
    source = f"headers of the files of {options.manifest}"
    return Speech(parts, source, alone, remarks, recordings, store.bytes)


def _part(
    rows: Sequence[Utterance], lang: str, split: str, store: _Weighed, nj: int
) -> Part:
    own = [row for row in rows if (row.lang, row.split) == (lang, split)]
    known = {row.utt_id: row.seconds for row in own if row.seconds is not None}
    known |= {
        row.utt_id: store.seconds[row.path] for row in own if row.path in store.seconds
    }
    broken = Counter(store.problems[r.path] for r in own if r.path in store.problems)
    taken = store.seconds.keys() | store.problems.keys()
    wavs = {
        row.utt_id: row.audio
        for row in own
        if row.utt_id not in known and row.path not in taken
    }
    part = lengths_of(wavs, nj)
    # Those whose length is known stand for themselves; a sample is rarely beside them.
    part.seconds += known.values()
    part.weight = (len(wavs) + len(known)) / max(1, len(part.seconds) + part.bad)
    part.broken += broken
    part.files, part.text = len(own), sum(bool(row.text) for row in own)
    return part


def _cut(
    rows: Sequence[Utterance], store: _Weighed, options: Options
) -> tuple[list[Utterance], float, list[str]]:
    """Return rows as long as pauses will make them, and seconds of recordings."""
    files = {row.utt_id: row.audio for row in rows if row.path not in store.seconds}
    seconds = {u: s for u, s, why in durations(files, options.nj) if not why}
    seconds |= {r.utt_id: store.seconds.get(r.path, 0.0) for r in rows} | seconds
    low, high = options.min_duration, options.max_duration
    long = [row for row in rows if seconds.get(row.utt_id, 0.0) > high]
    if not long:
        return list(rows), 0.0, []
    heard = _listen([row for row in long if row.utt_id in files], seconds, options)
    share, piece = 1.0, high / 2
    if heard and sum(cuts.seconds for cuts in heard):
        pieces = sum(len(cuts.segments) for cuts in heard)
        speech = sum(cuts.speech for cuts in heard)
        share = speech / sum(cuts.seconds for cuts in heard)
        piece = max(low, speech / max(1, pieces))
    lengths: dict[str, list[float]] = defaultdict(list)
    for row in long:
        speech = share * seconds[row.utt_id]
        count = max(1, round(speech / piece)) if speech else 0
        lengths[row.utt_id] = [speech / count] * count
    cut = [
        replace(
            row,
            utt_id=f"{row.utt_id}-{number}",
            speaker=row.speaker or row.utt_id,
            text="",
            seconds=length,
        )
        for row in long
        for number, length in enumerate(lengths[row.utt_id])
    ]
    total = sum(seconds[row.utt_id] for row in long)
    remark = (
        f"{len(long)} recordings longer than {high:g} s, {total / 3600:.2f} h, are cut "
        f"at pauses; {100 * share:.0f} % of them counted as speech, in pieces of about "
        f"{piece:.1f} s"
    )
    by = f"heard {len(heard)} parts of {_EACH:g} s" if heard else "an assumption"
    keys = {row.utt_id for row in long}
    return [r for r in rows if r.utt_id not in keys] + cut, total, [f"{remark} ({by})"]


def _listen(
    rows: Sequence[Utterance], seconds: Mapping[str, float], options: Options
) -> list[Cuts]:
    """Hear the middle of some recordings, evenly chosen."""
    chosen = rows[:: -(-len(rows) // _HEARD) or 1]
    parts = {}
    for row in chosen:
        offset, length = row.start or 0.0, min(_EACH, seconds[row.utt_id])
        start = offset + (seconds[row.utt_id] - length) / 2
        parts[row.utt_id] = part_of(row.path, start, start + length)
    limits = options.min_duration, options.max_duration
    calls = over_files(_speech_in, parts, options.nj, "hear a sample", limits)
    return [cuts for _, cuts, problem in calls if not problem]


def _speech_in(utt: str, path: str, limits: tuple[float, float]) -> Cuts:
    """Cut a part of a recording; for :func:`over_files`."""
    return cut_at_pauses(hear(path), *limits)
