"""The embedded corpus "mini": synthetic formant speech in eng, cmn, yue and spa.

It shows that the pipeline learns; it is no evidence about human speech.
"""

import json
import logging
from collections.abc import Iterator, Sequence
from contextlib import suppress
from itertools import islice, product
from pathlib import Path

import numpy as np

from espnet2_lamer.constants import SAMPLE_RATE
from espnet2_lamer.data import mini_plan
from espnet2_lamer.data.converting import write_flac
from espnet2_lamer.data.corpora import EVAL_DIR, PRETRAIN_DIR
from espnet2_lamer.data.espeak import VOICES, engine
from espnet2_lamer.data.sets import (
    Utterance,
    read_if_there,
    tables_of,
    write_tables,
)
from espnet2_lamer.errors import RecipeError
from espnet2_lamer.fileio.atomic import atomic_dir, write_json

# An utterance and its phones: name, start and end in seconds.
_Spoken = tuple[Utterance, list[tuple[str, float, float]]]

# Raised whenever the same plan would give other audio or text: sets made before are
# then made again.
_VERSION = 1
_BATCH = 32
_MEAN_SECONDS = 5.3

#: Pools named as POOLS of ``mini_plan``; minutes of speech; fewest utterances.
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
_JOINED = ("wav.scp", "text", "utt2spk", "utt2lang", "romanisation")
#: Languages of the demo, of the base and of the teacher; Spanish is one to add later.
LANGS = ("eng", "cmn", "yue")
#: What the mini base (eng) and the mini teacher (all three) are trained on.
STAGE0_SETS = {
    "base_train": {"pool": "train", "minutes": {"eng": 190.0}},
    "base_dev": {"pool": "stage0_dev", "minutes": {"eng": 3.0}},
    "teacher_train": {"pool": "train", "minutes": dict.fromkeys(LANGS, 75.0)},
    "teacher_dev": {"pool": "stage0_dev", "minutes": dict.fromkeys(LANGS, 3.0)},
}


def build_mini(
    output_dir: str | Path,
    nj: int = 1,
    seed: int = 0,
    minutes_scale: float = 1.0,
    langs: Sequence[str] = LANGS,
) -> dict[str, dict[str, float]]:
    """Make every set of :data:`MINI_SETS` in some of eng, cmn, yue and spa.

    Data directories are ``<output_dir>/<split>_<lang>``, with audio in
    ``audio/<split>_<lang>``. A ``manifest.json`` there is removed: it describes another
    corpus. ``minutes_scale`` is a factor on every set's minutes and utterances. Returns
    utterances and minutes per ``<split>_<lang>``.

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
    return _build_sets(MINI_SETS, output_dir, nj, seed, minutes_scale, langs)


def join_mini(
    output_dir: str | Path, langs: Sequence[str], nj: int = 1, seed: int = 0
) -> None:
    """Make some languages of the corpus, to be joined with other speech.

    Their sets are written for :func:`~.corpora.prepare.join_corpora`: train, dev and
    test are those that :func:`build_mini` calls train, dev and asr_test, and their
    source is ``mini``. Audio and own tables stay in ``<output_dir>/mini``.
    """
    output_dir = Path(output_dir)
    whole = output_dir / "mini"
    if langs:
        _build_sets(MINI_SETS, whole, nj, seed, 1.0, langs)
    splits = {"train": "train", "dev": "dev", "test": "asr_test"}
    kinds = {PRETRAIN_DIR: ("train",), EVAL_DIR: ("train", "dev", "test")}
    for kind, wanted in kinds.items():
        with atomic_dir(output_dir / kind / "mini") as folder:
            for split, lang in product(wanted, langs):
                made = whole / f"{splits[split]}_{lang}"
                tables = {n: read_if_there(made / n) for n in _JOINED}
                tables["utt2source"] = dict.fromkeys(tables["wav.scp"], "mini")
                filled = {name: table for name, table in tables.items() if table}
                (folder / f"{split}_{lang}").mkdir()
                write_tables(folder / f"{split}_{lang}", filled)


def build_pretraining_corpora(
    output_dir: str | Path, nj: int = 1, seed: int = 0, minutes_scale: float = 1.0
) -> dict[str, dict[str, float]]:
    """Make the corpora of the mini base and teacher, as :func:`build_mini` does.

    Their sentences and speakers are in no dev or test set of the mini corpus.
    """
    return _build_sets(STAGE0_SETS, output_dir, nj, seed, minutes_scale, LANGS)


def _build_sets(
    sets: dict, output_dir: str | Path, nj: int, seed: int, scale: float, langs
) -> dict[str, dict[str, float]]:
    results = {}
    for split, lang in product(sets, langs):
        options, name = sets[split], f"{split}_{lang}"
        if lang in options["minutes"]:
            recipe = {
                "split": split,
                "lang": lang,
                "pool": options["pool"],
                "minutes": options["minutes"][lang] * scale,
                "min_utterances": round(options.get("min_utterances", 0) * scale),
                "seed": seed,
                "audio": (Path(output_dir) / "audio" / name).as_posix(),
            }
            results[name] = build_set(Path(output_dir) / name, recipe, nj)
    return results


def build_set(data_dir: str | Path, recipe: dict, nj: int = 1) -> dict[str, float]:
    """Synthesise one set of one language, unless it is there already.

    Utterances come in the order of the plan until there are ``minutes`` and
    ``min_utterances`` of them; the result does not depend on ``nj``. FLAC files go to
    ``audio``, the data directory also holds ``phones.ctm``, ``utt2num_samples`` and
    ``mini.json``. ``pool`` is one of ``mini_plan.POOLS``.
    """
    recipe = {"version": _VERSION, **recipe}
    output_dir, data_dir = Path(recipe["audio"]), Path(data_dir)
    stored: dict = {}
    with suppress(OSError, ValueError):
        stored = json.loads((data_dir / "mini.json").read_text(encoding="utf-8"))
    if stored.get("recipe") == recipe and output_dir.is_dir():
        logging.info("%s: already made", data_dir)
        return stored["result"]
    plan = (recipe[key] for key in ("split", "lang", "pool", "seed"))
    plans = mini_plan.plan_utterances(*plan)
    wanted = recipe["minutes"] * 60, recipe["min_utterances"]
    # The data directory appears after its audio: where it is, the audio is whole.
    with atomic_dir(output_dir) as audio_dir:
        # Absolute: worker processes outlive a change of the working directory.
        folder = audio_dir.absolute()
        spoken = _synthesise(plans, folder, *wanted, nj, data_dir.name)
    with atomic_dir(data_dir) as directory:
        result = _write_data_dir(directory, output_dir, spoken)
        write_json(directory / "mini.json", {"recipe": recipe, "result": result})
    figures = result["utterances"], result["minutes"]
    logging.info("%s: %d utterances, %.1f min", data_dir, *figures)
    return result


def _synthesise(
    plans: Iterator[mini_plan.UtterancePlan],
    audio_dir: Path,
    seconds: float,
    min_utterances: int,
    nj: int,
    name: str,
) -> list[_Spoken]:
    from joblib import Parallel, delayed
    from tqdm import tqdm

    kept: list[_Spoken] = []
    total = 0.0
    bar = tqdm(total=round(seconds), desc=f"synthesise {name}", unit="s", disable=None)
    parallel = Parallel(n_jobs=nj, batch_size=_BATCH, return_as="generator")
    with parallel, bar:
        while total < seconds or len(kept) < min_utterances:
            missing = max((seconds - total) / _MEAN_SECONDS, min_utterances - len(kept))
            wave = list(islice(plans, int(missing) + 1))
            done = parallel(delayed(_speak)(plan, audio_dir) for plan in wave)
            for spoken in filter(None, done):
                utterance, _ = spoken
                if total >= seconds and len(kept) >= min_utterances:
                    (audio_dir / f"{utterance.utt_id}.flac").unlink()
                    continue
                kept.append(spoken)
                total += utterance.seconds
                bar.update(round(utterance.seconds))
    return kept


def _speak(plan: mini_plan.UtterancePlan, audio_dir: Path) -> _Spoken | None:
    """Speak one planned utterance; None when nothing of 2-10 s comes out.

    Sentences that would end after 10 s are left out. Level (peak 0.2-0.95) and white
    noise (25-40 dB below the speech) vary by utterance, because espeak repeats a
    phone's waveform exactly, which would make units too easy.
    """
    rng = np.random.default_rng(plan.seed)
    speaker = plan.speaker
    espeak = engine()
    espeak.reset()
    voice = {
        "voice": VOICES[plan.lang],
        "variant": speaker.variant,
        "pitch": speaker.pitch,
        "pitch_range": speaker.pitch_range,
        "rate": speaker.rate,
    }
    pieces = [np.zeros(round(rng.uniform(0.05, 0.15) * SAMPLE_RATE), np.float32)]
    length = len(pieces[0])
    phones, said = [], []
    for sentence in plan.sentences:
        samples, timed = espeak.synthesise(sentence.spoken, **voice)
        pause = round(rng.uniform(0.1, 0.3) * SAMPLE_RATE)
        if not timed:
            continue
        # Espeak ends a clause with a pause of its own; ours replaces it. The last
        # phone rings on a little after its event.
        begin = round(timed[0][1] * SAMPLE_RATE)
        end = min(len(samples), round((timed[-1][2] + 0.03) * SAMPLE_RATE))
        if length + end - begin > mini_plan.MAX_SECONDS * SAMPLE_RATE:
            break
        shift = (length - begin) / SAMPLE_RATE
        phones += [(name, start + shift, stop + shift) for name, start, stop in timed]
        pieces += [samples[begin:end], np.zeros(pause, np.float32)]
        length += end - begin + pause
        said.append(sentence)
    samples = np.concatenate(pieces)[: round(mini_plan.MAX_SECONDS * SAMPLE_RATE)]
    if not said or len(samples) < mini_plan.MIN_SECONDS * SAMPLE_RATE:
        return None
    separator = "" if plan.lang in mini_plan.HAN_LANGS else " "
    utterance = Utterance(
        plan.utt_id,
        path="",
        lang=plan.lang,
        text=separator.join(s.text for s in said),
        speaker=speaker.name,
        romanisation=" ".join(s.romanisation for s in said).strip(),
        seconds=len(samples) / SAMPLE_RATE,
    )
    write_flac(audio_dir / f"{plan.utt_id}.flac", _vary(samples, rng))
    return utterance, phones


def _vary(samples: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    snr_db = rng.uniform(25.0, 40.0)
    power = float(np.mean(np.square(samples, dtype=np.float64)))
    noise = rng.standard_normal(len(samples)) * np.sqrt(power / 10 ** (snr_db / 10))
    noisy = samples + noise
    peak = rng.uniform(0.2, 0.95)
    return (noisy * (peak / np.abs(noisy).max())).astype(np.float32)


def _write_data_dir(
    directory: Path, audio_dir: Path, spoken: list[_Spoken]
) -> dict[str, float]:
    utterances = [utterance for utterance, _ in spoken]
    for utterance in utterances:
        utterance.path = (audio_dir / f"{utterance.utt_id}.flac").as_posix()
    samples = {u.utt_id: round(u.seconds * SAMPLE_RATE) for u in utterances}
    counts = {utt: str(n) for utt, n in samples.items()}
    write_tables(directory, {**tables_of(utterances), "utt2num_samples": counts})
    with open(directory / "phones.ctm", "w", encoding="utf-8") as handle:
        for utterance, phones in sorted(spoken, key=lambda s: s[0].utt_id.encode()):
            for name, start, end in phones:
                times = f"{start:.3f} {end - start:.3f}"
                handle.write(f"{utterance.utt_id} 1 {times} {name}\n")
    minutes = round(sum(samples.values()) / SAMPLE_RATE / 60, 3)
    return {"utterances": len(spoken), "minutes": minutes}
