"""What readers of corpora share: an archive, its files, and the books of its rows."""

import json
import logging
import os
import tarfile
import zlib
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from espnet2_lamer.data.audio import listed
from espnet2_lamer.data.audio_files import is_hidden
from espnet2_lamer.data.corpora import CORPORA
from espnet2_lamer.data.sets import Utterance
from espnet2_lamer.errors import RecipeError
from espnet2_lamer.fileio.atomic import atomic_dir, write_json, write_text

#: Named ``pretrain/train_<lang>`` and ``eval/<split>_<lang>``.
Sets = Iterable[tuple[str, list[Utterance]]]
_MARK = "archive.json"
_SHOWN = 8
#: Defects of an archive; more than a set share of them stops the preparation.
DEFECTS = ("missing", "empty_file", "unreadable", "broken_row")


@dataclass(frozen=True)
class Archive:
    """What a corpus' reader finds.

    A set with fewer rows than ``complete`` says of the whole archive is warned about.
    """

    folder: Path
    sets: Sets
    details: Mapping[str, object] = field(default_factory=dict)  # for the report
    complete: Mapping[str, int] = field(default_factory=dict)


def locate(
    corpus: str, root: Path, markers: Sequence[str], folders: Sequence[str] = ()
) -> Path:
    """Return the folder of an archive, ``root`` or one of ``folders`` inside it.

    Every such archive has one of ``markers``, names or patterns of files or folders.

    Raises:
        RecipeError: There is none, or there are several.
    """
    inside = [folder for name in folders for folder in visible(root, name)]
    found = {
        folder.resolve(): folder
        for folder in (root, *inside)
        if any(visible(folder, marker) for marker in markers)
    }
    if len(found) > 1 and root.resolve() not in found:
        names = ", ".join(folder.name for folder in found.values())
        raise RecipeError(
            f"{root}: found {names}, expected one {corpus}; they share clips, so "
            f"let {CORPORA[corpus]} in db.sh, or --root, name the one to use"
        )
    for folder in found.values():
        return Path(os.path.abspath(folder))
    raise RecipeError(
        f"{root}: {found_in(root)}, expected {' or '.join(markers)} of {corpus}; "
        f"correct {CORPORA[corpus]} in db.sh, or --root"
    )


def visible(folder: Path, pattern: str) -> list[Path]:
    """Return what fits a pattern, sorted, without what is hidden or a Mac's copy."""
    found = folder.glob(pattern)
    return sorted(path for path in found if not is_hidden(path.relative_to(folder)))


def found_in(folder: Path) -> str:
    """Say what is in a folder, for errors."""
    if not folder.is_dir():
        return "folder not found"
    names = sorted(path.name for path in folder.iterdir())
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return f"found {', '.join(names[:_SHOWN])}{more}" if names else "found nothing"


def read_rows(path: Path) -> Iterator[tuple[str, list[str]]]:
    r"""Yield ``file:line`` and the values between tabs of every line that has any.

    A line that is not UTF-8 costs only itself: it has no values. Only ``\n`` ends a
    line: transcripts may hold other separators. A byte order mark is dropped.

    Raises:
        RecipeError: The file does not exist.
    """
    if not path.is_file():
        raise RecipeError(
            f"{path}: file not found; it belongs to the archive: unpack it again, or "
            "correct the path of the corpus"
        )
    with open(path, "rb") as handle:
        for number, line in enumerate(handle, 1):
            if number == 1:
                line = line.removeprefix(b"\xef\xbb\xbf")
            line = line.removesuffix(b"\n").rstrip(b"\r")
            values = []
            with suppress(UnicodeDecodeError):
                values = line.decode().split("\t")
            if line:
                yield f"{path}:{number}", values


def extract_once(archive: Path, folder: Path) -> Path:
    """Unpack ``archive`` into ``folder`` unless that was done before.

    The folder, which is returned and holds nothing else, appears by rename, so that a
    run that was killed starts this archive again and no other. Members that would leave
    it, and devices, are refused (:func:`tarfile.data_filter`).

    Raises:
        RecipeError: The file is no tar archive, is truncated, or holds a member that
            would be written elsewhere.
    """
    size, mtime_ns = archive.stat().st_size, archive.stat().st_mtime_ns
    origin = {"archive": archive.name, "size": size, "mtime_ns": mtime_ns}
    with suppress(OSError, json.JSONDecodeError):
        if json.loads((folder / _MARK).read_text(encoding="utf-8")) == origin:
            return folder
    logging.info("unpacking %s", archive)
    try:
        with atomic_dir(folder) as temporary:
            with tarfile.open(archive) as tar:
                tar.extractall(temporary, filter="data")
            write_json(temporary / _MARK, origin)
    except tarfile.FilterError as error:
        text = f"{archive}: {error}; this is not the corpus' own archive: download it "
        raise RecipeError(text + "again") from None
    except (tarfile.TarError, EOFError, zlib.error, OSError) as error:
        # Disk full and the like are no fault of the archive.
        if isinstance(error, OSError) and error.errno is not None:
            raise
        reason = (str(error).splitlines() or [""])[0].rstrip(":")
        raise RecipeError(
            f"{archive}: not a whole tar archive ({reason}); download it again"
        ) from None
    return folder


@dataclass
class _Account:
    """What is booked about one source of a set; ``seconds`` None: not known."""

    kept: int = 0
    seconds: float | None = 0.0
    left_out: Counter[str] = field(default_factory=Counter)
    remarks: Counter[str] = field(default_factory=Counter)


class Ledger:
    """Counts per set and source.

    A set is named by its folder below the data folder, ``pretrain/train_yue``; a source
    is a corpus or a part of one, ``commonvoice-zh-HK``. ``listing`` is the file that
    lists defects and duplicates, ``max_missing`` the most defects of a source in a set,
    in per cent.
    """

    def __init__(self, listing: Path, max_missing: float) -> None:
        self.listing, self.max_missing = listing, max_missing
        self._accounts: dict[tuple[str, str], _Account] = defaultdict(_Account)
        # Set, source, reason and what it is, of every defect and duplicate.
        self._listed: list[tuple[str, str, str, str]] = []

    def leave_out(self, name: str, source: str, reason: str, what: str = "") -> None:
        """Book a row of a set that is not used.

        ``reason`` is one of :data:`DEFECTS`, or a rule such as ``in_dev_or_test``. With
        ``what``, a file or ``file:line``, the row is listed.
        """
        self._accounts[name, source].left_out[reason] += 1
        if what:
            self._listed.append((name, source, reason, what))

    def remark(self, name: str, source: str, what: str) -> None:
        """Book something about a row that is used all the same."""
        self._accounts[name, source].remarks[what] += 1

    def keep(self, name: str, source: str, seconds: float | None) -> None:
        """Book an utterance that is used; ``seconds`` None: duration unknown."""
        account = self._accounts[name, source]
        account.kept += 1
        unknown = seconds is None or account.seconds is None
        account.seconds = None if unknown else account.seconds + seconds

    def check_shares(self) -> None:
        """Raise when more than the allowed share of a set's rows is defective.

        Every source of a set is judged by itself, so that a large one does not hide
        that a small one is absent. Rows left out by a rule do not count.
        """
        for key, account in self._accounts.items():
            bad = sum(account.left_out[reason] for reason in DEFECTS)
            rows = account.kept + bad
            if 100 * bad <= self.max_missing * rows:
                continue
            defects = [
                f"{reason}: {what}"
                for *where, reason, what in self._listed
                if tuple(where) == key and reason in DEFECTS
            ]
            raise RecipeError(
                f"{key[0]}, {key[1]}: {bad} of {rows} rows cannot be used "
                f"({100 * bad / rows:.2f} %), expected at most "
                f"{self.max_missing:g} %; complete the archive, or allow more by "
                f"--max_missing (in per cent). {self.listing} lists them:\n"
                f"{listed(defects)}"
            )

    def write_listing(self) -> None:
        """Write every defect and duplicate as a TSV file with a header."""
        rows = [("set", "source", "reason", "what"), *self._listed]
        write_text(self.listing, "".join("\t".join(row) + "\n" for row in rows))

    def report(self) -> dict[str, dict]:
        """Return the counts per set, then per source.

        ``hours`` is None where neither a column nor a header tells the durations.
        """
        sets: dict[str, dict] = {}
        for name in sorted({name for name, _ in self._accounts}):
            own = {s: a for (n, s), a in sorted(self._accounts.items()) if n == name}
            sets[name] = {
                "utterances": sum(account.kept for account in own.values()),
                "hours": _hours(*own.values()),
                "sources": {
                    source: {
                        "rows": account.kept + account.left_out.total(),
                        "utterances": account.kept,
                        "hours": _hours(account),
                        "left_out": dict(sorted(account.left_out.items())),
                        "remarks": dict(sorted(account.remarks.items())),
                    }
                    for source, account in own.items()
                },
            }
        return sets


def _hours(*accounts: _Account) -> float | None:
    seconds = [account.seconds for account in accounts]
    return None if None in seconds else round(sum(s / 3600 for s in seconds), 4)
