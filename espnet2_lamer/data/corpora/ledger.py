"""The books of a corpus: what was found, kept, left out and remarked."""

from collections import Counter
from pathlib import Path

from espnet2_lamer.errors import RecipeError
from espnet2_lamer.fileio.atomic import write_text

#: Defects of an archive; more than a set share of them stops the stage.
DEFECTS = ("missing", "empty_file", "unreadable", "broken_row")
_LISTED = 10


class Ledger:
    """Counts per set and source.

    A set is named by its folder below the data folder, ``pretrain/train_yue``; a source
    is a corpus or a part of one, ``commonvoice-zh-HK``.
    """

    def __init__(self) -> None:
        self.rows: Counter[tuple[str, str]] = Counter()
        self.kept: Counter[tuple[str, str]] = Counter()
        self.seconds: Counter[tuple[str, str]] = Counter()
        self.untimed: set[tuple[str, str]] = set()
        self.left_out: dict[tuple[str, str], Counter[str]] = {}
        self.remarks: dict[tuple[str, str], Counter[str]] = {}
        #: (set, source, reason, what) of every defect and duplicate.
        self.listed: list[tuple[str, str, str, str]] = []

    def leave_out(self, name: str, source: str, reason: str, what: str = "") -> None:
        """Book a row that is not used.

        Args:
            name: Set.
            source: Source.
            reason: One of :data:`DEFECTS`, or a rule such as ``held_out``.
            what: File or ``file:line``; where it is given the row is listed.
        """
        key = (name, source)
        self.rows[key] += 1
        self.left_out.setdefault(key, Counter())[reason] += 1
        if what:
            self.listed.append((name, source, reason, what))

    def remark(self, name: str, source: str, what: str) -> None:
        """Book something about a row that is used all the same."""
        self.remarks.setdefault((name, source), Counter())[what] += 1

    def keep(self, name: str, source: str, seconds: float | None) -> None:
        """Book an utterance that is used; ``seconds`` None: duration unknown."""
        key = (name, source)
        self.rows[key] += 1
        self.kept[key] += 1
        if seconds is None:
            self.untimed.add(key)
        else:
            self.seconds[key] += seconds

    def check_shares(self, max_missing: float, listing: Path) -> None:
        """Raise when more than ``max_missing`` per cent of a set's rows are defective.

        Every source of a set is judged by itself, so that a large one does not hide
        that a small one is absent. Rows left out by a rule do not count.
        """
        for key, reasons in self.left_out.items():
            bad = sum(reasons[reason] for reason in DEFECTS)
            rows = self.kept[key] + bad
            if 100 * bad <= max_missing * rows:
                continue
            lines = [
                f"  {reason}: {what}"
                for *where, reason, what in self.listed
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
        lines = ["set\tsource\treason\twhat", *("\t".join(row) for row in self.listed)]
        write_text(path, "\n".join(lines) + "\n")

    def report(self) -> dict[str, dict]:
        """Return the counts per set, then per source.

        ``hours`` is None where neither a column nor a header tells the durations.
        """
        sets: dict[str, dict] = {}
        for key in sorted({*self.rows, *self.remarks}):
            name, source = key
            entry = sets.setdefault(
                name, {"utterances": 0, "hours": 0.0, "sources": {}}
            )
            hours = None if key in self.untimed else self.seconds[key] / 3600
            entry["utterances"] += self.kept[key]
            unknown = hours is None or entry["hours"] is None
            entry["hours"] = None if unknown else entry["hours"] + hours
            entry["sources"][source] = {
                "rows": self.rows[key],
                "utterances": self.kept[key],
                "hours": None if hours is None else round(hours, 4),
                "left_out": dict(sorted(self.left_out.get(key, {}).items())),
                "remarks": dict(sorted(self.remarks.get(key, {}).items())),
            }
        for entry in sets.values():
            if entry["hours"] is not None:
                entry["hours"] = round(entry["hours"], 4)
        return sets
