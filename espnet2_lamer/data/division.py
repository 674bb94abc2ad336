"""Train, dev and test of one's own speech, by speaker and sentence where that goes."""

from collections.abc import Iterable, Sequence

import numpy as np
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from espnet2_lamer.data.overlap import normalised
from espnet2_lamer.data.sampling import seed_of
from espnet2_lamer.data.sets import Utterance

#: What a set may have apart from the rest, the best first.
APART = ("speakers and sentences", "speakers", "sentences", "utterances")
# Share of dev and of test, and the most that whole speakers may make of it.
_HELD_OUT = 0.1
_MOST = {"test": 1 / 3, "dev": 1 / 5}
# A row, and what it has in common with others: its speaker, its sentence.
_Row = tuple[Utterance, str, str]
_KINDS = {1: "speakers", 2: "sentences"}


def divide(rows: Iterable[Utterance], seed: int) -> dict[str, dict[str, str]]:
    """Give a split to the rows of each language that have none, about 80/10/10.

    Test, then dev, takes whole groups of rows in the order of a hash of id and seed:
    those that share neither speaker nor sentence with what is left; where these would
    be too large or too few, whole speakers, then all that say a sentence, then single
    utterances. Where some have text, their number counts.

    Returns:
        By language and split, which of :data:`APART` that is.
    """
    loose: dict[str, list[Utterance]] = {}
    for row in rows:
        if not row.split:
            loose.setdefault(row.lang, []).append(row)
    return {lang: _divide(loose[lang], seed) for lang in sorted(loose)}


def _divide(rows: list[Utterance], seed: int) -> dict[str, str]:
    # Ranked by hash rather than thresholded: a small language gets dev and test, too.
    rows.sort(key=lambda row: seed_of(seed, "split", row.utt_id))
    left = [(row, row.speaker, normalised(row.text)) for row in rows]
    with_text = sum(bool(row.text) for row in rows)
    enough = with_text >= 3
    count = round((with_text if enough else len(rows)) * _HELD_OUT) or 1
    known = {"utterances"}
    known |= {kind for place, kind in _KINDS.items() if any(r[place] for r in left)}
    levels = [level for level in APART if known.issuperset(level.split(" and "))]
    most = {split: max(1, share * len(rows)) for split, share in _MOST.items()}
    apart = {}
    for split in most if len(rows) >= 3 else ():
        for level in levels:
            groups = _groups(left, level)
            # Single utterances are taken as they always were: dev's come first.
            groups = groups[count:] + groups[:count] if split == "test" else groups
            chosen = _choose(groups, count, most[split], enough)
            if chosen:
                break
        for row, *_ in chosen:
            row.split = split
        apart[split] = level
        left = [row for row in left if not row[0].split]
    for row, *_ in left:
        row.split = "train"
    return apart


def _groups(rows: Sequence[_Row], level: str) -> list[list[_Row]]:
    """Return the rows in groups that have nothing in common, by their first row."""
    numbers: dict[tuple[str, str], int] = {}
    edges = [
        (n, len(rows) + numbers.setdefault((kind, row[place]), len(numbers)))
        for n, row in enumerate(rows)
        for place, kind in _KINDS.items()
        if row[place] and kind in level
    ]
    size = len(rows) + len(numbers)
    ends = np.array(edges, int).reshape(-1, 2).T
    graph = coo_array((np.ones(len(edges)), ends), shape=(size, size))
    _, found = connected_components(graph, directed=False)
    groups: dict[int, list[_Row]] = {}
    for row, group in zip(rows, found[: len(rows)].tolist(), strict=True):
        groups.setdefault(group, []).append(row)
    return list(groups.values())


def _choose(
    groups: list[list[_Row]], count: int, most: float, with_text: bool
) -> list[_Row]:
    """Return the rows of groups that make ``count`` together; none if they do not."""
    if len(groups) < 2:
        return []
    sizes = [sum(bool(r.text) or not with_text for r, *_ in g) for g in groups]
    chosen: list[_Row] = []
    total = 0
    for group, size in zip(groups, sizes, strict=True):
        if size and total + size <= count:
            chosen += group
            total += size
    if 2 * total < count:
        large = [i for i, size in enumerate(sizes) if 2 * size >= count]
        chosen = groups[min(large, key=sizes.__getitem__)] if large else []
    return chosen if len(chosen) <= most else []


def shares_in_train(rows: Iterable[Utterance]) -> dict[str, dict[str, float]]:
    """Return the share, per cent, of a language's test speakers and sentences in train.

    What is not known is left out.
    """
    found: dict[tuple[str, int, str], set[str]] = {}
    for row in rows:
        for place, value in ((1, row.speaker), (2, normalised(row.text))):
            found.setdefault((row.lang, place, row.split), set()).add(value)
    shares: dict[str, dict[str, float]] = {}
    for (lang, place, split), values in sorted(found.items()):
        known = values - {""}
        if split == "test" and known:
            both = known & found.get((lang, place, "train"), set())
            shares.setdefault(lang, {})[_KINDS[place]] = 100 * len(both) / len(known)
    return shares
