"""The books of a corpus: what was found, kept, left out and remarked."""

from collections import Counter, defaultdict
from dataclasses import dataclass, field
from pathlib import Path

from espnet2_lamer.errors import RecipeError
from espnet2_lamer.fileio.atomic import write_text

#: Defects of an archive; more than a set share of them stops the preparation.
DEFECTS = ("missing", "empty_file", "unreadable", "broken_row")
_LISTED = 10


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
    is a corpus or a part of one, ``commonvoice-zh-HK``.
    """

    def __init__(self) -> None:
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

    def check_shares(self, max_missing: float, listing: Path) -> None:
        """Raise when more than ``max_missing`` per cent of a set's rows are defective.

        Every source of a set is judged by itself, so that a large one does not hide
        that a small one is absent. Rows left out by a rule do not count.
        """
        for key, account in self._accounts.items():
            bad = sum(account.left_out[reason] for reason in DEFECTS)
            rows = account.kept + bad
            if 100 * bad <= max_missing * rows:
                continue
            lines = [
                f"  {reason}: {what}"
                for *where, reason, what in self._listed
                if tuple(where) == key and reason in DEFECTS
            ][:_LISTED]
            if bad > _LISTED:
                lines.append(f"  ... all in {listing}")
            raise RecipeError(
                f"{key[0]}, {key[1]}: {bad} of {rows} rows cannot be used "
                f"({100 * bad / rows:.2f} %), expected at most "
                f"{max_missing:g} %; complete the archive, or allow more by "
                "--max_missing (in per cent):\n" + "\n".join(lines)
            )

    def write_listing(self, path: str | Path) -> None:
        """Write every defect and duplicate as a TSV file with a header."""
        rows = [("set", "source", "reason", "what"), *self._listed]
        write_text(path, "".join("\t".join(row) + "\n" for row in rows))

    def report(self) -> dict[str, dict]:
        """Return the counts per set, then per source.

        ``hours`` is None where neither a column nor a header tells the durations.
        """
        sets: dict[str, dict] = {}
        hours: dict[str, list[float | None]] = {}
        for (name, source), account in sorted(
            self._accounts.items(), key=lambda item: item[0]
        ):
            own = None if account.seconds is None else account.seconds / 3600
            hours.setdefault(name, []).append(own)
            entry = sets.setdefault(name, {"utterances": 0, "hours": 0, "sources": {}})
            entry["utterances"] += account.kept
            entry["hours"] = _total(hours[name])
            entry["sources"][source] = {
                "rows": account.kept + account.left_out.total(),
                "utterances": account.kept,
                "hours": _total([own]),
                "left_out": dict(sorted(account.left_out.items())),
                "remarks": dict(sorted(account.remarks.items())),
            }
        return sets


def _total(hours: list[float | None]) -> float | None:
    return None if None in hours else round(sum(hours), 4)
