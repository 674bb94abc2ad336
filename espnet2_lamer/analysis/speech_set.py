"""The speech that an analysis listens to: a sample per language, with its speakers."""

from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from espnet2_lamer.constants import RECEPTIVE_FIELD, SAMPLE_RATE, num_frames
from espnet2_lamer.data.audio import read_16k
from espnet2_lamer.data.audio_decoding import Unusable
from espnet2_lamer.data.manifest import (
    channel_confounded,
    read_folder,
    read_manifest,
)
from espnet2_lamer.data.sets import Utterance, language_code, read_if_there
from espnet2_lamer.errors import RecipeError
from espnet2_lamer.fileio.datadir import read_table
from espnet2_lamer.metrics.probe import Phones, frame_phones

# Below this neither a held-out split nor an interval means anything.
MIN_UTTERANCES = 4
# Of longer utterances only the beginning, so that memory and time are bounded.
MAX_SECONDS = 20


@dataclass(frozen=True)
class SpeechSet:
    """Utterances to analyse."""

    source: str
    utterances: dict[str, list[Utterance]]  # per language, in random order
    available: dict[str, int]  # per language, how many there were to choose from
    # Per utterance the phone of every frame, where phones.ctm is there.
    phones: dict[str, Phones] = field(default_factory=dict, repr=False)
    speakers_known: bool = False  # some speaker has more than one utterance
    # No source covers two languages, so that the recording tells the language; None
    # where sources are not known.
    confounded: bool | None = None

    @property
    def langs(self) -> list[str]:
        """Languages, sorted."""
        return sorted(self.utterances)


def read_speech_set(
    data: str | Path, langs: Sequence[str] = (), max_utts: int = 100, seed: int = 0
) -> SpeechSet:
    """Choose utterances of a data directory, a manifest or a folder per language.

    A directory has ``wav.scp`` and ``utt2lang`` (``utt2spk``, ``utt2source`` and
    ``phones.ctm`` are used where they are there); ``phones.ctm`` may stand beside a
    manifest, too. Without ``langs`` all languages are used.

    Raises:
        RecipeError: Something is missing or unreadable, a language is unknown or not
            there, or has fewer than :data:`MIN_UTTERANCES` utterances.
    """
    data = Path(data)
    if max_utts < MIN_UTTERANCES:
        raise RecipeError(
            f"--max_utts: found {max_utts}, expected {MIN_UTTERANCES} or more"
        )
    rows, folder = _rows(data)
    groups: dict[str, list[Utterance]] = defaultdict(list)
    for row in rows:
        groups[row.lang].append(row)
    wanted = [language_code(lang, "--langs") for lang in langs] or sorted(groups)
    for lang in dict.fromkeys(wanted):
        count = len(groups.get(lang, []))
        if not count:
            raise RecipeError(
                f"{data}: no utterance of language {lang} (--langs); found "
                f"{', '.join(sorted(groups))}"
            )
        if count < MIN_UTTERANCES:
            rest = " ".join(sorted(set(wanted) - {lang}))
            raise RecipeError(
                f"{data}: language {lang} has {count} utterance(s), expected "
                f"{MIN_UTTERANCES} or more; add speech, or leave it out by "
                f"--langs {rest!r}"
            )
    generator = np.random.default_rng(seed)
    chosen: dict[str, list[Utterance]] = {}
    for lang in sorted(set(wanted)):
        group = sorted(groups[lang], key=lambda row: row.utt_id.encode())
        order = generator.permutation(len(group))[:max_utts]
        chosen[lang] = [group[i] for i in order]
    used = [row for group in chosen.values() for row in group]
    speakers = Counter(row.speaker for row in used if row.speaker)
    ctm = folder / "phones.ctm"
    return SpeechSet(
        source=data.as_posix(),
        utterances=chosen,
        available={lang: len(groups[lang]) for lang in chosen},
        phones=frame_phones(ctm) if ctm.is_file() else {},
        speakers_known=any(count > 1 for count in speakers.values()),
        confounded=channel_confounded(used) if len(chosen) > 1 else None,
    )


def read_waveform(utterance: Utterance) -> tuple[NDArray[np.float32], bool]:
    """Read samples ``[n]`` at 16 kHz, mono, and whether :data:`MAX_SECONDS` cut them.

    Raises:
        RecipeError: It cannot be read, or is too short for one frame.
    """
    try:
        samples = read_16k(utterance.path)
    except Unusable as error:
        raise RecipeError(
            f"{utterance.path}: utterance {utterance.utt_id!r} ({utterance.where}): "
            f"{error}; paths of wav.scp are relative to the current folder, those of a "
            "manifest to its own"
        ) from None
    if len(samples) < RECEPTIVE_FIELD:
        raise RecipeError(
            f"{utterance.path}: utterance {utterance.utt_id!r} has {len(samples)} "
            f"samples, expected at least {RECEPTIVE_FIELD} (one frame); leave it out"
        )
    most = MAX_SECONDS * SAMPLE_RATE
    return np.ascontiguousarray(samples[:most], np.float32), len(samples) > most


def phones_of(
    speech: SpeechSet, utterance: Utterance, samples: int, cut: bool
) -> Phones | None:
    """Return the phones of an utterance's frames, or None where they are not known.

    Where its ``samples`` were ``cut``, phones are cut, too; only then, so that phones
    of other audio are found out.
    """
    phones = speech.phones.get(utterance.utt_id)
    return phones[: num_frames(samples)] if phones is not None and cut else phones


def _rows(data: Path) -> tuple[list[Utterance], Path]:
    """Return all utterances, and the folder where ``phones.ctm`` may be."""
    if data.is_dir() and not (data / "wav.scp").is_file():
        if (data / "utt2lang").is_file() or (data / "text").is_file():
            raise RecipeError(f"{data / 'wav.scp'}: file not found")
        return read_folder(data), data
    if not data.is_dir():
        return read_manifest(data), data.parent
    wavs, langs = read_table(data / "wav.scp"), read_table(data / "utt2lang")
    speakers, sources = (read_if_there(data / f"utt2{x}") for x in ("spk", "source"))
    codes = {x: language_code(x, f"{data / 'utt2lang'}") for x in set(langs.values())}
    rows = []
    for utt, path in wavs.items():
        if utt not in langs:
            raise RecipeError(
                f"{data / 'utt2lang'}: no line for utterance {utt!r} of wav.scp"
            )
        # Corpora with unknown speakers have the utterance's id there.
        speaker = speakers.get(utt, "")
        rows.append(
            Utterance(
                utt_id=utt,
                path=path,
                lang=codes[langs[utt]],
                speaker="" if speaker == utt else speaker,
                source=sources.get(utt, ""),
                where=str(data / "wav.scp"),
            )
        )
    if not rows:
        raise RecipeError(f"{data / 'wav.scp'}: no utterances")
    return rows, data
