"""Train, dev and test of one's own speech, by speaker and sentence where that goes."""

import logging
from collections.abc import Iterable, Iterator, Sequence

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
    parent: dict[object, object] = {}

    def root(key: object) -> object:
        while parent.setdefault(key, key) != key:
            parent[key] = parent[parent[key]]
            key = parent[key]
        return key

    for number, row in enumerate(rows):
        for place, kind in _KINDS.items():
            if row[place] and kind in level:
                parent[root((kind, row[place]))] = root(number)
    groups: dict[object, list[_Row]] = {}
    for number, row in enumerate(rows):
        groups.setdefault(root(number), []).append(row)
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


def shares_in_train(rows: Sequence[Utterance]) -> Iterator[tuple[str, dict]]:
    """Yield each language's share of test speakers and sentences that train has.

    Per cent; None where nothing is known. A share above 0 is warned about.
    """
    for lang in sorted({row.lang for row in rows if row.split == "test"}):
        own = [row for row in rows if row.lang == lang and row.split != "dev"]
        found = {}
        for name, values in (
            ("speakers", [row.speaker for row in own]),
            ("sentences", [normalised(row.text) for row in own]),
        ):
            sets: dict[str, set[str]] = {"train": set(), "test": set()}
            for row, value in zip(own, values, strict=True):
                sets[row.split].add(value)
            known = sets["test"] - {""}
            share = 100 * len(known & sets["train"]) / len(known) if known else None
            found[name] = share
            if share:
                text = "%s: training has %.0f %% of the %s of the test set; its scores "
                text += "flatter, and results say so"
                logging.warning(text, lang, share, name)
        yield lang, found
