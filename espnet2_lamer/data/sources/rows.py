"""What readers share: rows from values, and what may stand in tables."""

import logging
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field

from espnet2_lamer.data.languages import language_code
from espnet2_lamer.data.segments import Times
from espnet2_lamer.data.sets import SPLITS, Utterance
from espnet2_lamer.data.sources.source import Source
from espnet2_lamer.data.sources.stored_audio import AudioStore
from espnet2_lamer.errors import RecipeError

#: Files that are not read: why, and how many of each language.
LeftOut = dict[str, Counter[str]]
COMPANION = "hidden or added by a Mac's copy"
LOOSE = "audio in no language's folder"
#: Where values are found that no setting names, the first that is there.
NAMES: dict[str, tuple[str, ...]] = {
    "id": ("utt_id",),
    "text": ("text", "sentence", "transcription", "transcript", "normalized_text"),
    "lang": ("lang", "language", "locale", "lang_id"),
    "speaker": ("speaker", "speaker_id", "client_id"),
    "romanisation": ("romanisation",),
    "source": ("source",),
    "split": ("split",),
}


@dataclass
class Reading:
    """What a reader is given beside its source.

    ``store`` takes audio out of archives (TSV files and folders need none); without
    ``langs`` all languages are wanted; ``left_out`` counts what is not read.
    """

    store: AudioStore = field(default_factory=lambda: AudioStore("audio"))
    langs: Collection[str] = ()
    left_out: LeftOut = field(default_factory=dict)

    def leave_out(self, why: str, lang: str) -> None:
        """Count something that is not read."""
        self.left_out.setdefault(why, Counter())[lang] += 1

    def wants(self, lang: str) -> bool:
        """Whether audio of a language is worth taking out of an archive."""
        return not self.langs or lang in self.langs


def choose_names(source: Source, there: Collection[str], split: str) -> dict[str, str]:
    """Return which column of a split has what; those of no use are logged.

    Raises:
        RecipeError: A setting names a column that is not there.
    """
    chosen = {}
    for role, known in NAMES.items():
        asked = source.settings.get(f"{role}_column")
        if asked and asked not in there:
            raise RecipeError(
                f"{source.path}: no column {asked!r} ({role}_column); found "
                f"{', '.join(sorted(there))}"
            )
        found = [asked] if asked else [n for n in known if n in there]
        if found and not (role == "lang" and "lang" in source.settings):
            chosen[role] = found[0]
    said = ", ".join(f"{role} from {name}" for role, name in chosen.items())
    unused = ", ".join(sorted({*there} - {*chosen.values()}))
    text = "%s, %s: %s; not used: %s"
    logging.info(text, source.path, split, said or "no column known", unused or "none")
    return chosen


def row(
    source: Source,
    utt_id: str,
    path: str,
    values: Mapping[str, object],
    where: str,
    times: Times | None = None,
    split: str = "",
) -> Utterance:
    """Make a row of what a reader found; ``values`` are by the names of NAMES' keys.

    Spaces and slashes of ids become ``_`` and ``-``; ``split`` is used where the values
    have none.

    Raises:
        RecipeError: There is no id or language, or a value cannot stand in a table.
    """
    clean = {k: clean_value(v, f"{where}, {k}") for k, v in values.items()}
    utt_id = "_".join(clean_value(utt_id, where).split()).replace("/", "-")
    lang = source.settings.get("lang") or clean.get("lang", "")
    if not utt_id:
        raise RecipeError(f"{where}: no utterance id; give every row one")
    if not lang:
        raise RecipeError(
            f"{where}: no language; if all of {source.path} is of one, say "
            f"{source.kind}:{source.path},lang=CODE"
        )
    split = clean.get("split") or split
    if split not in ("", *SPLITS):
        raise RecipeError(
            f"{where}: split {split!r}; expected {', '.join(SPLITS)} or nothing"
        )
    start, end = times or (None, None)
    return Utterance(
        utt_id,
        path=path,
        lang=language_code(lang, where),
        split=split,
        text=clean.get("text", ""),
        speaker=clean.get("speaker", "").replace(" ", "_"),
        romanisation=clean.get("romanisation", ""),
        source=clean.get("source", ""),
        where=where,
        start=start or None,
        end=end,
    )


def clean_value(value: object, where: str) -> str:
    """Return a value on one line, with single spaces.

    Raises:
        RecipeError: It is no text, or has a zero byte or half a character.
    """
    if value is None:
        return ""
    if isinstance(value, bool) or not isinstance(value, str | int):
        raise RecipeError(
            f"{where}: found {type(value).__name__} {str(value)[:60]!r}, expected text"
        )
    text = " ".join(str(value).split())
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise RecipeError(
            f"{where}: character {error.start + 1} is half of a pair (a surrogate), "
            "expected Unicode text; write the value again as UTF-8"
        ) from None
    if "\0" in text:
        raise RecipeError(f"{where}: holds a zero byte; expected text: take it out")
    return text


def check_unique(rows: Sequence[Utterance]) -> None:
    """Raise RecipeError where an id occurs twice."""
    seen: dict[str, str] = {}
    for row in rows:
        if row.utt_id in seen:
            raise RecipeError(
                f"{row.where}: utterance id {row.utt_id!r} occurs twice, first at "
                f"{seen[row.utt_id]}; ids must be unique (of several sources, "
                "SOURCE,prefix=NAME puts a name before one's ids)"
            )
        seen[row.utt_id] = row.where
