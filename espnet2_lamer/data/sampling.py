"""How replay is drawn: uniformly, balanced over speakers or units, shared by hours."""

import hashlib
import logging
from collections import Counter
from collections.abc import Container, Mapping
from pathlib import Path

import numpy as np

from espnet2_lamer.errors import RecipeError
from espnet2_lamer.fileio.text import text_lines

METHODS = ("uniform", "temperature", "speaker", "cluster")


def seed_of(*parts: object) -> int:
    """Return a 60-bit seed made of ``parts``, the same on every platform and run.

    With seeds made of names no draw depends on the order of the others.
    """
    text = "/".join(str(part) for part in parts)
    return int(hashlib.sha256(text.encode()).hexdigest()[:15], 16)


def sample_replay(durations: Mapping[str, float], hours: float, seed: int) -> set[str]:
    """Draw utterances uniformly at random until they last ``hours``, or all.

    The same seed, ids and durations (in seconds) give the same sample.
    """
    utts = sorted(durations, key=str.encode)
    order = np.random.default_rng(seed).permutation(len(utts))
    return _until([utts[index] for index in order], durations, hours)


def sample_balanced(
    durations: Mapping[str, float], groups: Mapping[str, str], hours: float, seed: int
) -> set[str]:
    """Draw one utterance of every group in turn until they last ``hours``.

    ``groups`` maps utterances to a speaker or unit. Groups and the utterances of each
    come in random order; a group that is used up is passed over.
    """
    generator = np.random.default_rng(seed)
    members: dict[str, list[str]] = {}
    for utt in sorted(durations, key=str.encode):
        members.setdefault(groups[utt], []).append(utt)
    names = sorted(members, key=str.encode)
    place = dict(zip(names, generator.permutation(len(names)), strict=True))
    turns = []
    for name in names:
        order = generator.permutation(len(members[name]))
        turns += [(turn, place[name], members[name][i]) for turn, i in enumerate(order)]
    return _until([utt for _, _, utt in sorted(turns)], durations, hours)


def _until(order: list[str], durations: Mapping[str, float], hours: float) -> set[str]:
    chosen: set[str] = set()
    total = 0.0
    for utt in order:
        if total >= hours * 3600:
            break
        chosen.add(utt)
        total += durations[utt]
    return chosen


def share_hours(
    available: Mapping[str, float], total: float, alpha: float
) -> dict[str, float]:
    """Share ``total`` hours over languages in proportion to ``available ** alpha``.

    ``alpha`` is 1/T of temperature sampling: 1 keeps the natural proportions, 0 gives
    every language the same; mHuBERT-147 uses 0.7. Nothing is repeated: a language gives
    at most what it has, and the others share the rest by the same rule.
    """
    shares = dict.fromkeys(available, 0.0)
    open_ = {lang for lang, hours in available.items() if hours > 0}
    left = min(total, sum(available.values()))
    while open_ and left > 0:
        weight = sum(available[lang] ** alpha for lang in open_)
        wanted = {lang: left * available[lang] ** alpha / weight for lang in open_}
        full = {lang for lang in open_ if wanted[lang] >= available[lang]}
        if not full:
            return shares | wanted
        for lang in sorted(full):
            shares[lang] = available[lang]
            left -= available[lang]
        open_ -= full
    return shares


def dominant_units(path: str | Path, utts: Container[str]) -> dict[str, str]:
    """Return the most frequent unit of each of ``utts``, the smaller one of two equals.

    ``path`` has lines ``utt_id u1 u2 ...`` such as ``bin.assign_units`` writes, or one
    cluster name per utterance from anywhere else.

    Raises:
        RecipeError: The file is missing.
    """
    path = Path(path)
    if not path.is_file():
        raise RecipeError(
            f"--replay_clusters: {path} not found; expected lines `utt_id u1 u2 ...`"
        )
    units: dict[str, str] = {}
    for _, line in text_lines(path):
        utt, *labels = line.split() or [""]
        if labels and utt in utts:
            counts = Counter(labels)
            units[utt] = min(counts, key=lambda u: (-counts[u], len(u), u))
    return units


def draw_replay(
    durations: Mapping[str, float],
    hours: float,
    seed: int,
    method: str = "uniform",
    speakers: Mapping[str, str] | None = None,
    clusters: str | Path | None = None,
    name: str = "",
) -> set[str]:
    """Draw the replay of one language, ``name`` in messages, by one of :data:`METHODS`.

    ``speaker`` balances over ``speakers``; an utterance without one is a speaker of its
    own. ``cluster`` balances over :func:`dominant_units`; utterances that ``clusters``
    does not know are left out and counted. ``temperature`` shares hours over languages
    (:func:`share_hours`); inside one it is uniform.

    Raises:
        RecipeError: ``cluster`` without a file, or with one that knows none of the
            utterances.
    """
    if method not in ("speaker", "cluster"):
        return sample_replay(durations, hours, seed)
    if method == "speaker":
        groups = {utt: (speakers or {}).get(utt) or utt for utt in durations}
    elif clusters:
        groups = dominant_units(clusters, durations)
    else:
        raise RecipeError(
            "--replay_sampling cluster needs --replay_clusters FILE with the units of "
            "the replay candidates, such as python -m espnet2_lamer.bin.assign_units "
            "writes with the teacher and codebook of an earlier run"
        )
    every, unknown = len(durations), len(durations) - len(groups)
    if durations and not groups:
        raise RecipeError(
            f"--replay_clusters {clusters}: no line for any of {every} {name} "
            "utterances; label the utterances of data/train_LANG/wav.scp"
        )
    kind = "speakers" if method == "speaker" else "units"
    count = len(set(groups.values()))
    logging.info("%s: replay drawn in turn from %d %s", name, count, kind)
    if unknown:
        text = "%s: %d of %d utterances have no units in %s and are not drawn"
        logging.warning(text, name, unknown, every, clusters)
    return sample_balanced({u: durations[u] for u in groups}, groups, hours, seed)
