"""Data directories from a TSV manifest, or from a folder of audio per language."""

import logging
import os
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

from espnet2_lamer.data.audio import EXTENSIONS
from espnet2_lamer.data.sampling import seed_of
from espnet2_lamer.data.sets import (
    SPLITS,
    Utterance,
    language_code,
    remove_other_sets,
    write_set,
)
from espnet2_lamer.errors import RecipeError
from espnet2_lamer.fileio.atomic import write_json
from espnet2_lamer.fileio.text import read_text

REQUIRED = ("utt_id", "path", "lang")
OPTIONAL = ("split", "text", "speaker", "romanisation", "source", "duration_s")
# Share of dev and of test where the manifest does not say.
_HELD_OUT = 0.1
_LISTED = 10


def prepare_manifest(
    manifest: str | Path,
    output_dir: str | Path,
    langs: Sequence[str] = (),
    exclude_sources: Sequence[str] = (),
    seed: int = 0,
) -> dict:
    """Write ``<output_dir>/<split>_<lang>`` and ``<output_dir>/manifest.json``.

    Rows without a split are divided by a hash of their id, 80/10/10 in every language.
    Utterances without text cannot be scored, so they join ``train``.

    Args:
        manifest: A TSV file (header line; utt_id, path, lang required; no quoting;
            paths relative to its folder) or a folder ``<lang>/**/*.wav``.
        output_dir: Where the data directories go. Sets of the embedded corpus there
            are removed, since downstream stages would prefer them.
        langs: Languages to use; empty: all there are.
        exclude_sources: Values of the column ``source`` to leave out.
        seed: Of the hash.

    Returns:
        What ``manifest.json`` holds.

    Raises:
        RecipeError: Anything wrong with the manifest: nothing is written then.
    """
    manifest, output_dir = Path(manifest), Path(output_dir)
    rows = read_folder(manifest) if manifest.is_dir() else read_manifest(manifest)
    langs = [language_code(lang, "--langs") for lang in langs]
    langs = list(dict.fromkeys(langs)) or sorted({row.lang for row in rows})
    kept, dropped = _choose(rows, langs, exclude_sources, manifest)
    _check_files(kept, manifest)
    _assign_splits(kept, seed)
    moved = 0
    for row in kept:
        if not row.text and row.split == "test":
            row.split = "train"
            moved += 1
    stats = {
        "manifest": manifest.as_posix(),
        "seed": seed,
        "langs": langs,
        "rows": len(rows),
        "used": len(kept),
        "dropped": dropped,
        "no_text": _count_by(kept, lambda row: not row.text),
        "no_text_moved_from_test_to_train": moved,
        "sets": dict(sorted(Counter(f"{r.split}_{r.lang}" for r in kept).items())),
        "sources": _sources(kept),
        "channel_confounded": _channel_confounded(kept),
    }
    remove_other_sets(output_dir, langs, stats["sets"])
    for name in stats["sets"]:
        write_set(output_dir / name, [r for r in kept if f"{r.split}_{r.lang}" == name])
    write_json(output_dir / "manifest.json", stats)
    _log(stats)
    return stats


def read_manifest(path: str | Path) -> list[Utterance]:
    """Read a TSV manifest; other columns than the known ones are ignored.

    Raises:
        RecipeError: Missing file or column, a line with another number of columns than
            the header, a duplicate or unusable id, an unknown language or split, no
            rows.
    """
    path = Path(path)
    if not path.is_file():
        raise RecipeError(f"{path}: manifest not found (a TSV file or a folder)")
    lines = read_text(path).split("\n")
    header = lines[0].rstrip("\r").split("\t")
    missing = [name for name in REQUIRED if name not in header]
    if missing:
        raise RecipeError(
            f"{path}:1: missing column {', '.join(missing)}; found "
            f"{', '.join(header)}; the first line must name the columns, separated by "
            "tabs"
        )
    twice = [name for name, count in Counter(header).items() if count > 1]
    if twice:
        raise RecipeError(f"{path}:1: column {twice[0]!r} occurs twice; rename one")
    rows: list[Utterance] = []
    for number, line in enumerate(lines[1:], 2):
        if not line.strip():
            continue
        rows.append(_parse(path, number, line.rstrip("\r"), header))
    if not rows:
        raise RecipeError(f"{path}: only a header line; add one line per utterance")
    _check_unique(rows)
    return rows


def _parse(path: Path, number: int, line: str, header: list[str]) -> Utterance:
    where = f"{path}:{number}"
    values = line.split("\t")
    if len(values) != len(header):
        raise RecipeError(
            f"{where}: found {len(values)} columns, expected {len(header)} as in the "
            "header; fields are separated by one tab and must not hold tabs"
        )
    record = {k: " ".join(v.split()) for k, v in zip(header, values, strict=True)}
    # A file name may hold runs of spaces.
    file_name = values[header.index("path")].strip()
    for name in REQUIRED:
        if not record[name]:
            raise RecipeError(f"{where}: column {name} is empty")
    split = record.get("split", "")
    if split not in ("", *SPLITS):
        raise RecipeError(
            f"{where}: split {split!r}; expected {', '.join(SPLITS)} or nothing"
        )
    return Utterance(
        utt_id=_checked_id(record["utt_id"], where),
        path=os.path.abspath(path.parent / file_name),
        lang=language_code(record["lang"], where),
        split=split,
        text=record.get("text", ""),
        speaker=record.get("speaker", "").replace(" ", "_"),
        romanisation=record.get("romanisation", ""),
        source=record.get("source", ""),
        where=where,
    )


def read_folder(root: str | Path) -> list[Utterance]:
    """List the audio of ``<root>/<lang>/**``; ids are made of the paths.

    Folders inside a language's folder are taken for speakers.

    Raises:
        RecipeError: A folder is no language, or there is no audio.
    """
    root = Path(root)
    rows = []
    for folder in sorted(p for p in root.iterdir() if p.is_dir()):
        if folder.name.startswith("."):
            continue
        lang = language_code(folder.name, str(folder))
        for path in _audio_files(folder):
            relative = path.relative_to(folder)
            name = "_".join(relative.with_suffix("").as_posix().split())
            inner = relative.parent.as_posix()
            speaker = "unknown" if inner == "." else "_".join(inner.split())
            rows.append(
                Utterance(
                    utt_id=f"{lang}_{name}".replace("/", "-"),
                    path=os.path.abspath(path),
                    lang=lang,
                    speaker=f"{lang}_{speaker}".replace("/", "-"),
                    where=str(path),
                )
            )
    if not rows:
        raise RecipeError(
            f"{root}: no audio; expected files {' '.join(EXTENSIONS)} in one folder "
            f"per language, such as {root}/eng/a.wav"
        )
    _check_unique(rows)
    return rows


def _audio_files(folder: Path) -> Iterator[Path]:
    for path in sorted(folder.rglob("*")):
        if path.suffix.lower() in EXTENSIONS and path.is_file():
            yield path


def _checked_id(utt_id: str, where: str) -> str:
    if "/" in utt_id or " " in utt_id:
        raise RecipeError(
            f"{where}: utterance id {utt_id!r} holds a space or a slash; files are "
            "named by it: use letters, digits, - and _"
        )
    return utt_id


def _check_unique(rows: list[Utterance]) -> None:
    seen: dict[str, str] = {}
    for row in rows:
        if row.utt_id in seen:
            raise RecipeError(
                f"{row.where}: utterance id {row.utt_id!r} occurs twice, first at "
                f"{seen[row.utt_id]}; ids must be unique"
            )
        seen[row.utt_id] = row.where


def _choose(rows, langs, exclude_sources, manifest) -> tuple[list[Utterance], dict]:
    sources = {row.source for row in rows}
    unknown = [source for source in exclude_sources if source not in sources]
    if unknown:
        raise RecipeError(
            f"{manifest}: no source {unknown[0]!r} to exclude; found "
            f"{', '.join(sorted(sources - {''})) or 'no column source'}"
        )
    kept = [r for r in rows if r.lang in langs and r.source not in exclude_sources]
    for lang in langs:
        if not any(row.lang == lang for row in kept):
            raise RecipeError(
                f"{manifest}: no utterance of language {lang}; found "
                f"{', '.join(sorted({row.lang for row in rows}))}"
                + (" before sources were excluded" if exclude_sources else "")
            )
    dropped = {
        "other_language": _count_by(rows, lambda row: row.lang not in langs),
        "excluded_source": _count_by(
            rows, lambda row: row.lang in langs and row.source in exclude_sources
        ),
    }
    return kept, dropped


def _count_by(rows: list[Utterance], condition) -> dict[str, int]:
    return dict(sorted(Counter(row.lang for row in rows if condition(row)).items()))


def _check_files(rows: list[Utterance], manifest: Path) -> None:
    missing = [row for row in rows if not os.path.isfile(row.path)]
    if not missing:
        return
    lines = [f"  {row.where}: {row.path}" for row in missing[:_LISTED]]
    if len(missing) > _LISTED:
        lines.append(f"  ... and {len(missing) - _LISTED} more")
    raise RecipeError(
        f"{manifest}: {len(missing)} of {len(rows)} audio files not found; paths are "
        "relative to the manifest's folder:\n" + "\n".join(lines)
    )


def _assign_splits(rows: list[Utterance], seed: int) -> None:
    for lang in {row.lang for row in rows}:
        # Ranked by hash rather than thresholded: a small language gets its dev and
        # test utterances, too.
        loose = sorted(
            (row for row in rows if row.lang == lang and not row.split),
            key=lambda row: seed_of(seed, "split", row.utt_id),
        )
        held_out = max(1, round(len(loose) * _HELD_OUT)) if len(loose) >= 3 else 0
        for index, row in enumerate(loose):
            row.split = (
                SPLITS[1:][index // held_out] if index < 2 * held_out else "train"
            )


def _sources(rows: list[Utterance]) -> dict[str, dict]:
    sources = {}
    for source in sorted({row.source for row in rows if row.source}):
        counts = dict(
            sorted(Counter(r.lang for r in rows if r.source == source).items())
        )
        sources[source] = {
            "utterances": counts,
            "covers_several_languages": len(counts) > 1,
        }
    return sources


def _channel_confounded(rows: list[Utterance]) -> bool | None:
    """Whether the source tells the language; None where sources are not known."""
    if len({row.lang for row in rows}) < 2:
        return False
    if not all(row.source for row in rows):
        return None
    return not any(s["covers_several_languages"] for s in _sources(rows).values())


def _log(stats: dict) -> None:
    logging.info(
        "%s: %d of %d rows used", stats["manifest"], stats["used"], stats["rows"]
    )
    for name, count in stats["sets"].items():
        logging.info("  %s: %d utterances", name, count)
    for reason, counts in (*stats["dropped"].items(), ("no_text", stats["no_text"])):
        for lang, count in counts.items():
            logging.info("  %s: %d of %s", reason, count, lang)
    if stats["channel_confounded"]:
        logging.warning(
            "channel-confounded: no source covers two languages, so the recording "
            "tells the language; language identification on it is no evidence"
        )
