"""The embedded corpus "mini": synthetic formant speech in eng, cmn, yue and spa.

It shows that the pipeline learns; it is no evidence about human speech.
"""

import json
import logging
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np

from espnet2_lamer.data.audio import write_flac
from espnet2_lamer.data.espeak import SAMPLE_RATE, VOICES, engine
from espnet2_lamer.data.mini_plan import (
    MAX_SECONDS,
    MIN_SECONDS,
    UtterancePlan,
    plan_utterances,
)
from espnet2_lamer.data.texts import HAN_LANGS
from espnet2_lamer.errors import RecipeError
from espnet2_lamer.fileio.atomic import atomic_dir, write_json
from espnet2_lamer.fileio.datadir import write_spk2utt, write_table

# Raised whenever the same plan would give other audio or text: sets made before are
# then made again.
_VERSION = 1
_CHUNK = 32
_MEAN_SECONDS = 5.3

#: Pools named as POOLS of ``data.texts``; minutes of speech; fewest utterances.
MINI_SETS = {
    "train": {"pool": "train", "minutes": dict.fromkeys(VOICES, 15.0) | {"eng": 20.0}},
    "dev": {"pool": "dev", "minutes": dict.fromkeys(VOICES, 2.5)},
    "asr_train": {"pool": "train", "minutes": dict.fromkeys(VOICES, 15.0)},
    "asr_dev": {"pool": "dev", "minutes": dict.fromkeys(VOICES, 3.0)},
    "asr_test": {
        "pool": "test",
        "minutes": dict.fromkeys(VOICES, 6.5),
        "min_utterances": 68,
    },
}
#: Languages of the demo, of the base and of the teacher; Spanish is one to add later.
LANGS = ("eng", "cmn", "yue")
#: What stage 0 trains the base (eng) and the teacher (all three) on.
STAGE0_SETS = {
    "base_train": {"pool": "train", "minutes": {"eng": 190.0}},
    "base_dev": {"pool": "stage0_dev", "minutes": {"eng": 3.0}},
    "teacher_train": {"pool": "train", "minutes": dict.fromkeys(LANGS, 75.0)},
    "teacher_dev": {"pool": "stage0_dev", "minutes": dict.fromkeys(LANGS, 3.0)},
}


@dataclass(frozen=True)
class Utterance:
    """One utterance after synthesis: everything the data directory says about it."""

    utt_id: str
    speaker: str
    num_samples: int
    text: str
    romanisation: str
    phones: tuple[tuple[str, float, float], ...]


def build_mini(
    output_dir: str | Path,
    nj: int = 1,
    seed: int = 0,
    minutes_scale: float = 1.0,
    langs: Sequence[str] = LANGS,
) -> dict[str, dict[str, float]]:
    """Make every set of :data:`MINI_SETS` under ``output_dir``.

    Args:
        output_dir: Data directories ``<split>_<lang>`` and ``audio/<split>_<lang>``. A
            ``manifest.json`` there is removed: it describes another corpus.
        nj: Processes.
        seed: Of everything random.
        minutes_scale: Factor on every set's minutes and utterances.
        langs: Some of ``eng``, ``cmn``, ``yue``, ``spa``.

    Returns:
        Per ``<split>_<lang>``: utterances and minutes.

    Raises:
        RecipeError: A language that the corpus does not have.
    """
    unknown = [lang for lang in langs if lang not in VOICES]
    if unknown:
        raise RecipeError(
            f"--corpus mini: found language {unknown[0]!r}, expected some of "
            f"{', '.join(VOICES)}; bring other speech with --corpus manifest"
        )
    (Path(output_dir) / "manifest.json").unlink(missing_ok=True)
    sets = {
        split: {**options, "minutes": {x: options["minutes"][x] for x in langs}}
        for split, options in MINI_SETS.items()
    }
    return _build_sets(sets, output_dir, nj, seed, minutes_scale)


def build_pretraining_corpora(
    output_dir: str | Path, nj: int = 1, seed: int = 0, minutes_scale: float = 1.0
) -> dict[str, dict[str, float]]:
    """Make the corpora of stage 0 (:data:`STAGE0_SETS`) under ``output_dir``.

    Their sentences and speakers are in no dev or test set of the mini corpus. Arguments
    and result are those of :func:`build_mini`.
    """
    return _build_sets(STAGE0_SETS, output_dir, nj, seed, minutes_scale)


def _build_sets(
    sets: dict, output_dir: str | Path, nj: int, seed: int, minutes_scale: float
) -> dict[str, dict[str, float]]:
    output_dir = Path(output_dir)
    report = {}
    for split, options in sets.items():
        for lang, minutes in options["minutes"].items():
            name = f"{split}_{lang}"
            report[name] = build_set(
                output_dir / "audio" / name,
                output_dir / name,
                split,
                lang,
                minutes * minutes_scale,
                options["pool"],
                seed,
                min_utterances=round(options.get("min_utterances", 0) * minutes_scale),
                nj=nj,
            )
    return report


def build_set(
    output_dir: str | Path,
    data_dir: str | Path,
    split: str,
    lang: str,
    minutes: float,
    pool: str,
    seed: int = 0,
    min_utterances: int = 0,
    nj: int = 1,
) -> dict[str, float]:
    """Synthesise one set of one language, unless it is there already.

    Utterances come in the order of the plan until there are ``minutes`` and
    ``min_utterances`` of them; the result does not depend on ``nj``.

    Args:
        output_dir: Where the FLAC files go: ``<output_dir>/<utt>.flac``.
        data_dir: The data directory: wav.scp, text, utt2spk, spk2utt, utt2lang,
            phones.ctm, utt2num_samples, romanisation (where known), mini.json.
        split: Part of the utterance ids.
        lang: ``eng``, ``cmn``, ``yue`` or ``spa``.
        minutes: Least amount of speech.
        pool: Pool of sentences and of speakers, see ``data.texts.POOLS``.
        seed: Draws sentences, pauses, levels and noise.
        min_utterances: Least number of utterances.
        nj: Processes.

    Returns:
        ``{"utterances": int, "minutes": float}``.
    """
    output_dir, data_dir = Path(output_dir), Path(data_dir)
    recipe = {
        "version": _VERSION,
        "split": split,
        "lang": lang,
        "pool": pool,
        "minutes": minutes,
        "min_utterances": min_utterances,
        "seed": seed,
        "audio": output_dir.as_posix(),
    }
    done = _read_done(data_dir, recipe)
    if done is not None and output_dir.is_dir():
        logging.info("%s: already made", data_dir)
        return done
    # The data directory appears after its audio: where it is, the audio is whole.
    with atomic_dir(output_dir) as audio_dir:
        plans = plan_utterances(split, lang, pool, seed)
        # Absolute: worker processes outlive a change of the working directory.
        utterances = _synthesise(
            plans,
            audio_dir.absolute(),
            minutes * 60,
            min_utterances,
            nj,
            f"{split}_{lang}",
        )
    with atomic_dir(data_dir) as directory:
        result = _write_data_dir(directory, output_dir, lang, utterances)
        write_json(directory / "mini.json", {"recipe": recipe, "result": result})
    logging.info(
        "%s: %d utterances, %.1f min", data_dir, result["utterances"], result["minutes"]
    )
    return result


def _read_done(data_dir: Path, recipe: dict) -> dict[str, float] | None:
    try:
        stored = json.loads((data_dir / "mini.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return stored["result"] if stored.get("recipe") == recipe else None


def _synthesise(plans, audio_dir, seconds, min_utterances, nj, name) -> list[Utterance]:
    from joblib import Parallel, delayed
    from tqdm import tqdm

    kept: list[Utterance] = []
    total = 0.0
    bar = tqdm(
        total=round(seconds),
        desc=f"synthesise {name}",
        unit="s",
        disable=not sys.stderr.isatty(),
    )
    with Parallel(n_jobs=nj, return_as="generator") as parallel, bar:
        while total < seconds or len(kept) < min_utterances:
            missing = max((seconds - total) / _MEAN_SECONDS, min_utterances - len(kept))
            wave = list(islice(plans, int(missing) + 1))
            chunks = [wave[i : i + _CHUNK] for i in range(0, len(wave), _CHUNK)]
            done = parallel(delayed(_synthesise_chunk)(c, audio_dir) for c in chunks)
            for utterance in (u for chunk in done for u in chunk):
                if total >= seconds and len(kept) >= min_utterances:
                    (audio_dir / f"{utterance.utt_id}.flac").unlink()
                    continue
                kept.append(utterance)
                total += utterance.num_samples / SAMPLE_RATE
                bar.update(round(utterance.num_samples / SAMPLE_RATE))
    return kept


def _synthesise_chunk(plans: list[UtterancePlan], audio_dir: Path) -> list[Utterance]:
    utterances = []
    for plan in plans:
        result = synthesise_utterance(plan)
        if result is None:
            continue
        samples, utterance = result
        write_flac(audio_dir / f"{utterance.utt_id}.flac", samples, SAMPLE_RATE)
        utterances.append(utterance)
    return utterances


def synthesise_utterance(plan: UtterancePlan) -> tuple[np.ndarray, Utterance] | None:
    """Speak one planned utterance.

    Sentences that would end after 10 s are left out. Level (peak 0.2-0.95) and white
    noise (25-40 dB below the speech) vary by utterance, because espeak repeats a
    phone's waveform exactly, which would make units too easy.

    Returns:
        Samples (float32, 16 kHz) and the utterance, or None when nothing of 2-10 s
        comes out.
    """
    rng = np.random.default_rng(plan.seed)
    speaker = plan.speaker
    espeak = engine()
    espeak.reset()
    lead = rng.uniform(0.05, 0.15)
    pieces = [np.zeros(round(lead * SAMPLE_RATE), np.float32)]
    length = len(pieces[0])
    phones: list[tuple[str, float, float]] = []
    said = []
    for sentence in plan.sentences:
        samples, timed = espeak.synthesise(
            sentence.spoken,
            VOICES[plan.lang],
            speaker.variant,
            speaker.pitch,
            speaker.pitch_range,
            speaker.rate,
        )
        pause = round(rng.uniform(0.1, 0.3) * SAMPLE_RATE)
        if not timed:
            continue
        # Espeak ends a clause with a pause of its own; ours replaces it. The last
        # phone rings on a little after its event.
        begin = round(timed[0][1] * SAMPLE_RATE)
        end = min(len(samples), round((timed[-1][2] + 0.03) * SAMPLE_RATE))
        if length + end - begin > MAX_SECONDS * SAMPLE_RATE:
            break
        shift = (length - begin) / SAMPLE_RATE
        phones += [(name, start + shift, stop + shift) for name, start, stop in timed]
        silence = np.zeros(pause, np.float32)
        pieces += [samples[begin:end], silence]
        length += end - begin + pause
        said.append(sentence)
    samples = np.concatenate(pieces)[: round(MAX_SECONDS * SAMPLE_RATE)]
    if not said or len(samples) < MIN_SECONDS * SAMPLE_RATE:
        return None
    separator = "" if plan.lang in HAN_LANGS else " "
    utterance = Utterance(
        plan.utt_id,
        speaker.name,
        len(samples),
        separator.join(s.text for s in said),
        " ".join(s.romanisation for s in said).strip(),
        tuple(phones),
    )
    return _vary(samples, rng), utterance


def _vary(samples: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    snr_db = rng.uniform(25.0, 40.0)
    power = float(np.mean(np.square(samples, dtype=np.float64)))
    noise = rng.standard_normal(len(samples)) * np.sqrt(power / 10 ** (snr_db / 10))
    noisy = samples + noise
    peak = rng.uniform(0.2, 0.95)
    return (noisy * (peak / np.abs(noisy).max())).astype(np.float32)


def _write_data_dir(
    directory: Path, audio_dir: Path, lang: str, utterances: list[Utterance]
) -> dict[str, float]:
    ids = [u.utt_id for u in utterances]
    write_table(
        directory / "wav.scp", {i: (audio_dir / f"{i}.flac").as_posix() for i in ids}
    )
    write_table(directory / "text", {u.utt_id: u.text for u in utterances})
    write_spk2utt(directory, {u.utt_id: u.speaker for u in utterances})
    write_table(directory / "utt2lang", dict.fromkeys(ids, lang))
    write_table(
        directory / "utt2num_samples",
        {u.utt_id: str(u.num_samples) for u in utterances},
    )
    if all(u.romanisation for u in utterances):
        write_table(
            directory / "romanisation", {u.utt_id: u.romanisation for u in utterances}
        )
    with open(directory / "phones.ctm", "w", encoding="utf-8") as handle:
        for utterance in sorted(utterances, key=lambda u: u.utt_id.encode()):
            for name, start, end in utterance.phones:
                handle.write(
                    f"{utterance.utt_id} 1 {start:.3f} {end - start:.3f} {name}\n"
                )
    samples = sum(u.num_samples for u in utterances)
    return {"utterances": len(ids), "minutes": round(samples / SAMPLE_RATE / 60, 3)}
