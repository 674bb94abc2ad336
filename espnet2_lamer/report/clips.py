"""Listening examples: what was said, and what two recognisers wrote of it."""

import io
import logging
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import soundfile
from rapidfuzz.distance import Levenshtein

from espnet2_lamer.constants import SAMPLE_RATE
from espnet2_lamer.evaluation.runs import RECORD, Run
from espnet2_lamer.evaluation.scoring import read_pair, tokenize
from espnet2_lamer.fileio.datadir import read_table
from espnet2_lamer.metrics.alignment import error_counts
from espnet2_lamer.report.page import data_uri

#: Sound of more languages would make the page too large to send.
MOST_LANGUAGES = 8
_TRACKS = ("asr", "multi_asr")
# Names of the places in the order of change.
_PLACES = {
    0.0: "largest gain",
    0.25: "first quarter",
    0.5: "median",
    0.75: "third quarter",
    1.0: "largest loss",
}


@dataclass(frozen=True)
class Hypothesis:
    """What one system wrote.

    Attributes:
        pieces: Stretches of it and whether they are ``right``, ``wrong`` (other than
            the reference, or not in it) or ``missing`` (in the reference alone).
        space: What stands between two pieces.
    """

    system: str
    errors: int
    pieces: list[tuple[str, str]]
    space: str


@dataclass(frozen=True)
class Clip:
    """One utterance: its sound as a data URI, or why there is none."""

    utt: str
    why: str
    seconds: str
    sound: str
    silent: str
    reference: str
    hypotheses: list[Hypothesis]


@dataclass
class Listening:
    """Clips by language, and the rule that chose them."""

    rule: str
    groups: list[dict] = field(default_factory=list)


def listening_examples(
    expdir: Path, names: Sequence[str], system: str, langs: Sequence[str], clips: int
) -> Listening:
    """Choose ``clips`` test utterances of each language by their change.

    They lie evenly in the order of the change in error rate from ``base`` to
    ``system``, from the largest gain to the largest loss; of equal changes the first
    id comes first. Where there is no base the order is that of the error rate.

    Args:
        names: Experiment directories of heads below ``expdir``.
        langs: Languages to show, at most :data:`MOST_LANGUAGES` of them.
    """
    runs = [Run.read(expdir / name / RECORD) for name in names]
    if clips < 1:
        return Listening("None was asked for (--clips 0).")
    found = Listening("")
    without = []
    for lang in langs[:MOST_LANGUAGES]:
        pair = _pair(runs, system, lang)
        if pair is None:
            without.append(lang)
            continue
        found.groups.append(_examples(expdir, *pair, lang, clips))
    said = []
    if found.groups:
        said.append(
            f"{clips} test utterances of each language, evenly spaced in the order of "
            "their change in error rate, from the largest gain to the largest loss; "
            "the rule looks at nothing else. Underlined: other than the reference, or "
            "not in it. Struck out: missing. The sound is that of the corpus, whose "
            "licence decides who may have this page."
        )
    if without:
        said.append(
            f"None of {', '.join(without)}: there is no recogniser of it, because its "
            "speech has no text, or none was trained."
        )
    if len(langs) > MOST_LANGUAGES:
        said.append(f"{len(langs) - MOST_LANGUAGES} more languages are left out.")
    found.rule = " ".join(said)
    return found


def _pair(
    runs: Sequence[Run], system: str, lang: str
) -> tuple[Run, Run | None, str] | None:
    """Find a language's recogniser, the base's with the same head, and a test."""
    for track in _TRACKS:
        for run in runs:
            if run.track != track or run.system != system or lang not in run.langs:
                continue
            # But for the upstream, and the layer that is best of it.
            same = [
                other
                for other in runs
                if other.system == "base" and _head(other) == _head(run)
            ]
            return run, same[0] if same else None, next(iter(run.tests))
    return None


def _head(run: Run) -> tuple:
    return run.track, run.budget, run.corpus, run.langs, run.unit, run.seed


def _examples(
    expdir: Path, run: Run, base: Run | None, test: str, lang: str, clips: int
) -> dict:
    here = run.directory(expdir) / f"decode_{test}"
    audio = read_table(here / "ref" / "wav.scp")
    spoken = read_table(here / "ref" / "utt2lang")
    systems = [base, run] if base else [run]
    references, texts = {}, {}
    for one in systems:
        folder = one.directory(expdir) / f"decode_{test}"
        text = folder / "free" / "1best_recog" / "text"
        references, texts[one.system] = read_pair(folder / "ref" / "text", text)
    tokens = {
        utt: tokenize(text, run.unit)
        for utt, text in references.items()
        if spoken.get(utt) == lang
    }
    changes = {}
    for utt, reference in tokens.items():
        errors = [
            error_counts(reference, tokenize(texts[s.system][utt], run.unit)).errors
            for s in systems
        ]
        changes[utt] = (errors[-1] - sum(errors[:-1])) / max(len(reference), 1)
    order = sorted(changes, key=lambda utt: (changes[utt], utt))
    places = np.linspace(0, 1, clips) if clips > 1 else np.array([0.5])
    chosen: dict[str, float] = {}
    for place in places:
        chosen.setdefault(order[round(place * (len(order) - 1))], float(place))
    made = []
    for utt, place in chosen.items():
        name = _PLACES.get(place, f"{place:.0%} of the way")
        sound, seconds, silent = _sound(audio.get(utt, ""), expdir)
        made.append(
            Clip(
                utt,
                f"{name} of {len(order)}",
                seconds,
                sound,
                silent,
                references[utt],
                [
                    _hypothesis(s.system, tokens[utt], texts[s.system][utt], run.unit)
                    for s in systems
                ],
            )
        )
    head = f"layer {run.layer}" if run.layer != "all" else "weighted sum"
    title = f"{lang}: {run.unit}, head on {head}, test set {test}"
    return {"lang": lang, "title": title, "clips": made}


def _hypothesis(system: str, wanted: list[str], text: str, unit: str) -> Hypothesis:
    found = tokenize(text, unit)
    characters = unit in ("char", "bpe")

    def written(tokens: Sequence[str]) -> str:
        if not characters:
            return " ".join(tokens)
        return "".join(" " if t == "<space>" else t for t in tokens)

    pieces = []
    for step in Levenshtein.opcodes(wanted, found):
        old, new = (
            written(wanted[step.src_start : step.src_end]),
            written(found[step.dest_start : step.dest_end]),
        )
        if step.tag == "equal":
            pieces.append(("right", new))
        elif step.tag == "delete":
            # A space that is missing is not seen.
            pieces.append(("missing", old if old.strip() else "␣"))
        else:
            pieces.append(("wrong", new if new.strip() else "␣"))
    errors = error_counts(wanted, found).errors
    return Hypothesis(system, errors, pieces, "" if characters else " ")


def _sound(path: str, expdir: Path) -> tuple[str, str, str]:
    """Return an utterance as Ogg Opus in a data URI, its length, or what is wrong."""
    places = [Path(path), expdir.parent / path]
    file = next((p for p in places if path and p.is_file()), None)
    if file is None:
        logging.warning("%s: file not found; the report has no sound of it", path)
        return "", "length not known", f"audio not found: {path}"
    samples, rate = soundfile.read(file, dtype="float32", always_2d=True)
    content = io.BytesIO()
    opus = "OPUS" in soundfile.available_subtypes("OGG") and rate == SAMPLE_RATE
    form = ("OGG", "OPUS") if opus else ("WAV", "PCM_16")
    soundfile.write(content, samples.mean(1), rate, format=form[0], subtype=form[1])
    kind = "audio/ogg" if opus else "audio/wav"
    return data_uri(content.getvalue(), kind), f"{len(samples) / rate:.1f} s", ""
