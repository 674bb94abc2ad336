"""ML-SUPERB 2.0's data as its challenge gives them: languages, and their dialects.

They come as Parquet files (``espnet/ml_superb_hf`` of Hugging Face) with the columns
``id language text audio``, or as the data folders ``train dev dev_dialect`` that
ESPnet's ``egs2/ml_superb2`` makes of them, whose ``text`` begins with a language tag.
The challenge's own tests stay on its server; folders ``test`` and ``test_dialect`` are
read where somebody has some.
"""

import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from espnet2_lamer.data.sources.kaldi import audio_file
from espnet2_lamer.data.sources.source import Source
from espnet2_lamer.data.sources.stored_audio import AudioStore
from espnet2_lamer.errors import RecipeError, require, short_reason
from espnet2_lamer.fileio.datadir import read_table

NAME = "mlsuperb2"
#: Splits in the order of the tables; heads are tested on all but the first.
SPLITS = ("train", "dev", "dev_dialect", "test", "test_dialect")
#: Codes of the data of which the recipe makes others (since 2026).
RENAMED = {"org_jpn": "jpn", "lga": "lug", "ory": "ori", "arb": "ara"}
#: Codes that it leaves out, but not of dialects.
DROPPED = ("nno", "nob", "nor")
# Dialects whose row says Hindi, though the id says what they are.
_MISLABELLED, _SPOKEN = "ms_speech_", ("tam", "tel", "guj")
_COLUMNS = ("id", "language", "text")
_TAG = re.compile(r"\[([^\[\]\s]*)\]\s*(.*)", re.DOTALL)
_SHARD = re.compile(rf"({'|'.join(SPLITS)})(-\d+-of-\d+)?")
_UTTERANCE = re.compile(r"[^\s/\\\0]+")
_CODE = re.compile("[a-z]{3}")
#: Utterance id, language, text, and where that stands.
Label = tuple[str, str, str, str]


@dataclass(frozen=True)
class Tree:
    """The data below ``root``: files of each split, Parquet or ``wav.scp``."""

    root: Path
    splits: Mapping[str, tuple[Path, ...]]

    @property
    def is_parquet(self) -> bool:
        """Whether the files hold the audio."""
        return self.splits["train"][0].suffix == ".parquet"

    @property
    def sources(self) -> list[Path]:
        """The files that say what is in the data."""
        files = [path for part in self.splits.values() for path in part]
        if not self.is_parquet:
            files += [path.with_name("text") for path in files]
        return files

    @property
    def audio_folders(self) -> list[Path]:
        """Where audio lies that is not in the files themselves."""
        if self.is_parquet:
            return []
        found = set()
        for (table,) in self.splits.values():
            # One file of each folder says where it is.
            one = {p.rpartition("/")[0]: (u, p) for u, p in read_table(table).items()}
            found |= {Path(audio_file(table, *pair)).parent for pair in one.values()}
        return sorted(found)


def official_language(split: str, utt: str, lang: str) -> str:
    """Return the code that the challenge's recipe gives an utterance; "": left out."""
    dialect = split.endswith("dialect")
    if dialect and utt.startswith(_MISLABELLED):
        spoken = utt.removeprefix(_MISLABELLED).split("_")[0]
        lang = spoken if spoken in _SPOKEN else lang
    lang = RENAMED.get(lang, lang)
    return "" if lang in DROPPED and not dialect else lang


def open_tree(root: str | Path) -> Tree:
    """Find the data in a folder.

    Raises:
        RecipeError: There are none of this layout, or a split is missing.
    """
    if not str(root) or str(root) == ".":
        raise RecipeError(
            "MLSUPERB2 is not set; write the path of ML-SUPERB 2.0's data into db.sh, "
            "or choose another --benchmark"
        )
    root = Path(root)
    splits: dict[str, tuple[Path, ...]] = {}
    for split in SPLITS:
        tables = [root / split / "wav.scp", root / "data" / split / "wav.scp"]
        if there := [path for path in tables if path.is_file()]:
            splits[split] = (there[0],)
    if not splits:
        for path in sorted(root.rglob("*.parquet")):
            found = _SHARD.fullmatch(path.stem) or _SHARD.fullmatch(path.parent.name)
            if found:
                splits[found[1]] = (*splits.get(found[1], ()), path)
    for split in ("train", "dev"):
        if split not in splits:
            here = sorted(p.name for p in root.iterdir()) if root.is_dir() else []
            raise RecipeError(
                f"{root}: no {split} split of ML-SUPERB 2.0, found "
                f"{', '.join(here[:8]) or 'nothing'}; expected {split}/wav.scp, as "
                f"ESPnet's egs2/ml_superb2 makes it, or {split}-00000-of-*.parquet of "
                "Hugging Face's espnet/ml_superb_hf; correct MLSUPERB2 in db.sh"
            )
    return Tree(root, {split: splits[split] for split in SPLITS if split in splits})


def planned_languages(root: str | Path, langs: Sequence[str]) -> dict[str, list[str]]:
    """Return which of ``langs`` (``all``: every one) each split has.

    Raises:
        RecipeError: The data are not as they should be, or a language is not in their
            training set.
    """
    tree = open_tree(root)
    stamps = [(str(path), *_stamp(path)) for path in tree.sources]
    known = _languages(tree.root, tuple(stamps))
    missing = [x for x in langs if x != "all" and x not in known["train"]]
    if missing:
        raise RecipeError(
            f"--eval_langs: {missing[0]} is not in the training set of {root}; it has "
            f"{', '.join(known['train'])}"
        )
    wanted = known["train"] if "all" in langs else langs
    # A dialect may be of a language that nothing trains: all systems fail alike.
    every = "all" in langs
    found = {
        split: [x for x in there if every or x in wanted]
        for split, there in known.items()
    }
    return {split: there for split, there in found.items() if there}


def _stamp(path: Path) -> tuple[int, int]:
    if not path.is_file():
        raise RecipeError(f"{path}: file not found; it has the texts of {path.parent}")
    status = path.stat()
    return status.st_size, status.st_mtime_ns


@cache
def _languages(root: Path, stamps: tuple) -> dict[str, list[str]]:
    """Languages of every split, in their order; read again when a file changes."""
    tree = open_tree(root)
    return {
        split: sorted({lang for _, lang, _, _ in read_labels(tree, split)} - {""})
        for split in tree.splits
    }


def read_labels(tree: Tree, split: str) -> Iterator[Label]:
    """Yield every utterance of a split, its language as the challenge's recipe has it.

    Raises:
        RecipeError: A file cannot be read, an id occurs twice or is none, or what
            should be a language is no code of three letters.
    """
    seen: set[str] = set()
    rows = _rows if tree.is_parquet else _lines
    for utt, lang, text, where in rows(tree.splits[split]):
        if not _UTTERANCE.fullmatch(utt) or utt in seen:
            problem = "occurs twice" if utt in seen else "is no utterance id"
            raise RecipeError(f"{where}: {utt!r} {problem}; repair the data")
        seen.add(utt)
        lang = official_language(split, utt, lang.strip())
        if lang and not _CODE.fullmatch(lang):
            raise RecipeError(
                f"{where}: {utt}: found the language {lang!r}, expected a code of "
                "three letters such as eng; repair the data"
            )
        yield utt, lang, text, where


def _lines(tables: Sequence[Path]) -> Iterator[Label]:
    (wav_scp,) = tables
    path = wav_scp.with_name("text")
    texts = read_table(path)
    if lost := texts.keys() ^ read_table(wav_scp).keys():
        raise RecipeError(
            f"{path}: {len(lost)} utterances are only in one of text and wav.scp, "
            f"first {min(lost)!r}; make both hold the same"
        )
    for utt, line in texts.items():
        found = _TAG.match(line)
        if not found:
            raise RecipeError(
                f"{path}: {utt}: found {line[:40]!r}, expected a language tag and the "
                "text, such as '[eng] A B C'"
            )
        yield utt, found[1], found[2], str(path)


def _rows(files: Sequence[Path]) -> Iterator[Label]:
    for batch, where in _batches(files, _COLUMNS):
        for utt, lang, text in zip(*(batch[c] for c in _COLUMNS), strict=True):
            # The text repeats the language, as it was.
            found = _TAG.match(text or "")
            yield str(utt), lang or "", found[2] if found else text or "", where


def _batches(files: Sequence[Path], columns: Sequence[str]) -> Iterator:
    """Yield columns of Parquet files as lists, some hundred rows at a time."""
    require("pyarrow", "reading ML-SUPERB 2.0's Parquet files")
    import pyarrow
    from pyarrow import parquet

    for path in files:
        try:
            with parquet.ParquetFile(path) as file:
                there = file.schema_arrow.names
                if lacking := [name for name in columns if name not in there]:
                    raise RecipeError(
                        f"{path}: no column {lacking[0]!r}, found {', '.join(there)}; "
                        "expected a file of espnet/ml_superb_hf"
                    )
                for batch in file.iter_batches(256, columns=list(columns)):
                    yield batch.to_pydict(), str(path)
        except (pyarrow.ArrowException, OSError) as error:
            raise RecipeError(
                f"{path}: cannot be read ({short_reason(error)}); complete the download"
            ) from error


def audio_paths(
    tree: Tree, split: str, utts: Collection[str], store: AudioStore
) -> dict[str, str]:
    """Return the audio file of some utterances; from Parquet it is written out."""
    if not tree.is_parquet:
        (table,) = tree.splits[split]
        wavs = read_table(table)
        return {utt: audio_file(table, utt, wavs[utt]) for utt in utts}
    found: dict[str, str] = {}
    store.open(
        Source("datasets", str(tree.root), {"source": f"{NAME}_{split}"}),
        tree.splits[split],
    )
    for batch, where in _batches(tree.splits[split], ("id", "audio")):
        for utt, audio in zip(batch["id"], batch["audio"], strict=True):
            if utt in utts:
                held = audio if isinstance(audio, dict) else {}
                data = held.get("bytes")
                if not isinstance(data, bytes):
                    raise RecipeError(
                        f"{where}: {utt}: no audio in the column audio; expected the "
                        "bytes of a file"
                    )
                suffix = Path(held.get("path") or "").suffix.lower()
                found[utt] = store.add(utt, data, suffix, f"{where}, {utt}")
    return found
