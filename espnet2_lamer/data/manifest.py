"""Data directories from anybody's speech, in the forms that ``data.sources`` reads."""

import logging
import os
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from contextlib import ExitStack
from pathlib import Path

from espnet2_lamer.data.audio import listed
from espnet2_lamer.data.audio_decoding import OVERSHOT, outside
from espnet2_lamer.data.corpora import EVAL_DIR, PRETRAIN_DIR
from espnet2_lamer.data.division import divide, shares_in_train
from espnet2_lamer.data.languages import language_code, language_name, named
from espnet2_lamer.data.segmented_rows import LISTING, Segmenting, segment_rows
from espnet2_lamer.data.segments import read_wavs
from espnet2_lamer.data.sets import (
    SPLITS,
    Utterance,
    remove_other_sets,
    write_set,
)
from espnet2_lamer.data.sources import read_sources
from espnet2_lamer.data.sources.rows import LOOSE, LeftOut, Reading, check_unique
from espnet2_lamer.data.sources.source import parse_sources
from espnet2_lamer.data.sources.stored_audio import AudioStore
from espnet2_lamer.errors import RecipeError
from espnet2_lamer.fileio.atomic import atomic_dir, write_json

_AGAIN = "the same file under another id"
_LOUD = ("suffix", _AGAIN, LOOSE)
# Formats whose header tells the duration without decoding.
_CHEAP = (".wav", ".flac")


def prepare_manifest(
    manifest: str | Path,
    output_dir: str | Path,
    langs: Sequence[str] = (),
    exclude_sources: Sequence[str] = (),
    seed: int = 0,
    segmenting: Segmenting | None = None,
    joined: bool = False,
) -> dict:
    """Write ``<output_dir>/<split>_<lang>`` and ``<output_dir>/manifest.json``.

    ``manifest`` names sources as :func:`~.sources.source.parse_sources` reads them.
    Audio that lies in archives goes to ``<output_dir>/audio``. Rows without a split are
    divided by :func:`~espnet2_lamer.data.division.divide`. Sets of the embedded corpus
    are removed, since evaluation would prefer them. Without ``langs`` all languages are
    used; rows of ``exclude_sources`` (``source``) are not. ``segmenting`` says what
    becomes of recordings that are longer than an utterance.

    With ``joined``, other corpora come to it: the sets are ``pretrain/manifest`` and
    ``eval/manifest``, as those of :func:`~.corpora.prepare.prepare`, and languages of
    ``langs`` may be missing.

    Returns:
        What ``manifest.json`` holds.

    Raises:
        RecipeError: Anything wrong with a source: no set is written then.
    """
    manifest, output_dir = str(manifest), Path(output_dir)
    sources = parse_sources(manifest)
    langs = [language_code(lang, "--langs") for lang in langs]
    left_out: LeftOut = defaultdict(Counter)
    reading = Reading(AudioStore(output_dir / "audio"), langs, left_out)
    rows = read_sources(sources, reading, joined)
    langs = list(dict.fromkeys(langs)) or sorted({row.lang for row in rows})
    wanted = [row for row in rows if row.lang in langs]
    kept = [row for row in wanted if row.source not in exclude_sources]
    asked = [lang for lang in langs if not joined or lang in {r.lang for r in rows}]
    _check_choice(rows, kept, asked, exclude_sources, manifest)
    _check_files(kept, manifest)
    _check_times(kept)
    kept = _once(kept, left_out)
    used = len(kept)
    segmenting = segmenting or Segmenting()
    beside = Path(sources[0].path if len(sources) == 1 else manifest)
    kept = segment_rows(kept, beside, output_dir, segmenting)
    check_unique(kept)
    empty = [lang for lang in asked if lang not in {row.lang for row in kept}]
    if empty:
        raise RecipeError(
            f"{manifest}: no speech of language {empty[0]} is left after segmentation "
            f"(--segment {segmenting.way}); {output_dir / LISTING} has a line per "
            "recording"
        )
    apart = divide(kept, seed)
    of_sources = _sources(kept)
    excluded = [row for row in wanted if row.source in exclude_sources]
    sets: dict[str, list[Utterance]] = defaultdict(list)
    for row in kept:
        sets[f"{row.split}_{row.lang}"].append(row)
    stats = {
        "manifest": manifest,
        "read_as": {source.path: source.kind for source in sources},
        "seed": seed,
        "langs": asked,
        "names": {lang: language_name(lang) for lang in asked},
        "rows": len(rows),
        "used": used,
        "utterances": len(kept),
        "dropped": {
            "other_language": _by_lang(row for row in rows if row.lang not in langs),
            "excluded_source": _by_lang(excluded),
            **{why: counts for why, counts in left_out.items() if counts.total()},
        },
        "no_text": _by_lang(row for row in kept if not row.text),
        "kept_apart": apart,
        "test_in_train": shares_in_train(kept),
        "sets": {name: len(rows) for name, rows in sorted(sets.items())},
        "sources": of_sources,
        "channel_confounded": channel_confounded(kept),
    }
    _warn_of_moves(output_dir, kept)
    if joined:
        _write_joined(output_dir, sets)
    else:
        remove_other_sets(output_dir, langs, sets)
        for name, own in sets.items():
            write_set(output_dir / name, own)
    write_json(output_dir / "manifest.json", stats)
    _log(stats)
    return stats


def _write_joined(output_dir: Path, sets: dict[str, list[Utterance]]) -> None:
    """Write the sets where :func:`~.corpora.prepare.join_corpora` looks for them."""
    with ExitStack() as stack:
        folders = {
            kind: stack.enter_context(atomic_dir(output_dir / kind / "manifest"))
            for kind in (PRETRAIN_DIR, EVAL_DIR)
        }
        for name, rows in sets.items():
            kind = PRETRAIN_DIR if name.startswith("train") else EVAL_DIR
            write_set(folders[kind] / name, rows)
            if kind == PRETRAIN_DIR:
                write_set(folders[EVAL_DIR] / name, rows)


def _check_choice(rows, kept, langs, exclude_sources, manifest) -> None:
    sources = {row.source for row in rows}
    unknown = [source for source in exclude_sources if source not in sources]
    if unknown:
        raise RecipeError(
            f"{manifest}: no source {unknown[0]!r} to exclude; found "
            f"{', '.join(sorted(sources - {''})) or 'no column source'}"
        )
    empty = [lang for lang in langs if lang not in {row.lang for row in kept}]
    if empty:
        raise RecipeError(
            f"{manifest}: no utterance of language {named(empty[0])}; found "
            f"{', '.join(map(named, sorted({row.lang for row in rows})))}"
            + (" before sources were excluded" if exclude_sources else "")
        )


def _by_lang(rows: Iterable[Utterance]) -> dict[str, int]:
    return dict(sorted(Counter(row.lang for row in rows).items()))


def _check_files(rows: list[Utterance], manifest: str) -> None:
    missing = [row for row in rows if not _find(row)]
    if missing:
        lines = listed([f"{row.where}: {row.path}" for row in missing])
        raise RecipeError(
            f"{manifest}: {len(missing)} of {len(rows)} audio files not found; paths "
            f"are relative to the manifest's folder:\n{lines}"
        )


def _check_times(rows: list[Utterance]) -> None:
    """Refuse parts outside recordings whose header tells the length.

    Of others stage 2 finds out, and lists them.
    """
    import soundfile

    lengths: dict[str, float] = {}
    wrong = []
    parts = [row for row in rows if row.start or row.end]
    for row in parts:
        if not row.path.lower().endswith(_CHEAP):
            continue
        if row.path not in lengths:
            try:
                lengths[row.path] = soundfile.info(row.path).duration
            except (OSError, RuntimeError):  # stage 2 says what it is
                lengths[row.path] = float("inf")
        length, times = lengths[row.path], (row.start or 0.0, row.end)
        if times[0] >= length or (times[1] or 0.0) > length + OVERSHOT:
            wrong.append(f"{row.where}: {outside(times, length)}, {row.path}")
    if wrong:
        raise RecipeError(
            f"{len(wrong)} of {len(parts)} parts are outside their recordings; correct "
            f"their times, or the recording they name:\n{listed(wrong)}"
        )


def _find(row: Utterance) -> bool:
    """Whether the file is there; a Mac composes letters with accents otherwise."""
    for form in ("", "NFC", "NFD"):
        path = unicodedata.normalize(form, row.path) if form else row.path
        if os.path.isfile(path):
            row.path = path
            return True
    return False


def _warn_of_moves(output_dir: Path, rows: list[Utterance]) -> None:
    """Say how many utterances train has now that earlier models were tested on."""
    tested: set[str] = set()
    for lang in {row.lang for row in rows}:
        folder = output_dir / f"test_{lang}"
        tested |= read_wavs(folder).keys() if (folder / "wav.scp").is_file() else set()
    moved = sum(row.split == "train" and row.utt_id in tested for row in rows)
    if moved:
        text = "%d utterances that were in test are in train now: results from before "
        text += "do not compare; a column split would have kept them"
        logging.warning(text, moved)


def _once(rows: list[Utterance], left_out: LeftOut) -> list[Utterance]:
    """Keep one row of every file, or part, that of test before dev before train."""
    of_file = {}
    ranks = {split: rank for rank, split in enumerate(("", *SPLITS))}
    for row in sorted(rows, key=lambda row: ranks[row.split]):
        if row.audio in of_file:
            left_out[_AGAIN][row.lang] += 1
        of_file[row.audio] = row.utt_id
    return [row for row in rows if of_file[row.audio] == row.utt_id]


def _sources(rows: list[Utterance]) -> dict[str, dict]:
    sources = {}
    for source in sorted({row.source for row in rows if row.source}):
        counts = _by_lang(row for row in rows if row.source == source)
        several = len(counts) > 1
        sources[source] = {"utterances": counts, "covers_several_languages": several}
    return sources


def channel_confounded(rows: Sequence[Utterance]) -> bool | None:
    """Whether the source tells the language; None where sources are not known."""
    covered: dict[str, set[str]] = defaultdict(set)
    for row in rows:
        covered[row.source].add(row.lang)
    if len(set().union(*covered.values())) < 2:
        return False
    if "" in covered:
        return None
    if any(len(langs) > 1 for langs in covered.values()):
        return False
    logging.warning(
        "channel-confounded: no source covers two languages, so the recording tells "
        "the language; language identification on it is no evidence"
    )
    return True


def _log(stats: dict) -> None:
    figures = stats["manifest"], stats["used"], stats["rows"]
    logging.info("%s: %d of %d rows used", *figures)
    logging.info("  languages: %s", ", ".join(map(named, stats["langs"])))
    for name, count in stats["sets"].items():
        logging.info("  %s: %d utterances", name, count)
    for lang, kept in stats["kept_apart"].items():
        for split, what in kept.items():
            logging.info("  %s: %s has %s of its own", lang, split, what)
    for lang, shares in stats["test_in_train"].items():
        for name, share in shares.items():
            if share:
                text = "%s: train has %.0f %% of the %s of the test set, whose scores "
                logging.warning(text + "flatter; results say so", lang, share, name)
    for reason, counts in {**stats["dropped"], "no_text": stats["no_text"]}.items():
        level = logging.WARNING if reason.startswith(_LOUD) else logging.INFO
        for lang, count in counts.items():
            logging.log(level, "  %s: %d of %s", reason, count, lang)
