"""What ``--manifest`` names: sources, of which kind each is, and what is said of it."""

import re
import shlex
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from espnet2_lamer.data.audio_files import EXTENSIONS
from espnet2_lamer.errors import RecipeError

# Of any kind: the language, split and source of every row; what ids begin with.
_OF_ALL = ("lang", "split", "source", "prefix")
_COLUMNS = ("audio_column", "text_column", "lang_column", "speaker_column", "id_column")
#: Kind to the settings that may follow a path: ``datasets:DIR,lang=deu``.
KINDS: dict[str, tuple[str, ...]] = {
    "tsv": _OF_ALL,
    "folder": _OF_ALL,
    "kaldi": _OF_ALL,
    "datasets": (*_OF_ALL, *_COLUMNS, "config", "only"),
    "lhotse": _OF_ALL,
    "webdataset": (*_OF_ALL, "text_column", "lang_column", "speaker_column"),
}
_TARS = (".tar", ".tar.gz", ".tgz")
_SETTING = re.compile(r",(?=[a-z_]+=)")
# The same as `sources` of a folder: words of a name that tell a split.
_SPLITS = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("dev", "valid", "validation", "val"), "dev"),
    **dict.fromkeys(("test", "testing", "eval"), "test"),
}


@dataclass(frozen=True)
class Source:
    """One source of speech; ``settings`` are those of :data:`KINDS`."""

    kind: str
    path: str  # a file, a folder, a pattern, or the id of a dataset
    settings: Mapping[str, str] = field(default_factory=dict)
    known_by: str = field(default="", compare=False)

    @property
    def name(self) -> str:
        """What its rows are said to come from, where nothing else says it."""
        path = self.settings.get("source", self.path)
        # Of a pattern, the folder.
        parts = [part for part in Path(path).parts if not set("*?[{") & set(part)]
        stem = re.sub(
            r"(\.(tsv|jsonl|gz|tgz|tar|parquet|arrow))+$", "", "".join(parts[-1:])
        )
        return re.sub(r"[^\w.-]+", "_", stem).strip("._") or self.kind

    def files(self) -> list[Path]:
        """The files, or the one folder, that it is read from, for prints of them."""
        path = Path(self.path)
        if path.exists():
            return [path]
        return shards(self.path) if self.kind == "webdataset" else []


def parse_sources(text: str) -> list[Source]:
    """Read ``[KIND:]PATH[,KEY=VALUE]...``, several with spaces between.

    A path with spaces stands in quotes of its own, unless it is the only one. Without a
    kind it is found out.

    Raises:
        RecipeError: Nothing is there, a kind or a setting is not known.
    """
    try:
        words = [text] if Path(text).exists() else shlex.split(text)
    except ValueError as error:
        raise RecipeError(f"--manifest {text}: {error}; close the quotes") from None
    if not text.strip():
        raise RecipeError(
            "--corpus manifest needs --manifest: a TSV file, a folder of audio per "
            f"language, or other sources ({', '.join(KINDS)})"
        )
    sources = [_parse(word) for word in words]
    twice = [s.path for n, s in enumerate(sources) if s in sources[:n]]
    if twice:
        raise RecipeError(f"--manifest: {twice[0]} stands there twice; name it once")
    return sources


def _parse(word: str) -> Source:
    path, *settings = _SETTING.split(word)
    kind, colon, rest = path.partition(":")
    forced = bool(colon) and kind in KINDS
    if (
        colon
        and not forced
        and re.fullmatch("[a-z]+", kind)
        and not Path(path).exists()
    ):
        raise RecipeError(
            f"--manifest {word}: no kind {kind!r}; expected one of {', '.join(KINDS)}"
        )
    path = rest if forced else path
    if forced:
        why = "as asked"
    else:
        kind, why = _detect(path)
    given = dict(setting.split("=", 1) for setting in settings)
    if unknown := [key for key in given if key not in KINDS[kind]]:
        raise RecipeError(
            f"--manifest {word}: {kind} has no setting {unknown[0]}; expected some of "
            f"{', '.join(KINDS[kind])}"
        )
    if given.get("split", "train") not in {*_SPLITS.values()}:
        raise RecipeError(
            f"--manifest {word}: split {given['split']!r}; expected train, dev or test"
        )
    return Source(kind, path, given, why)


def _detect(name: str) -> tuple[str, str]:
    """Return the kind and by what it is known."""
    path = Path(name)
    lower = name.lower()
    if path.is_dir():
        return _detect_folder(path)
    if lower.endswith(_TARS):
        return "webdataset", "tar shards"
    if not path.is_file():
        raise RecipeError(
            f"{name}: manifest not found (a TSV file, a folder, a CutSet, tar shards); "
            f"a dataset of the Hugging Face hub is named datasets:{name}"
        )
    if lower.endswith((".jsonl", ".jsonl.gz")):
        return "lhotse", "a JSON lines file"
    if lower.endswith((".parquet", ".arrow")):
        return "datasets", "its suffix"
    if path.name == "wav.scp":
        raise RecipeError(f"{name}: name its folder instead: kaldi:{path.parent}")
    if lower.endswith(EXTENSIONS):
        raise RecipeError(
            f"{name}: one audio file; name its folder: folder:{path.parent},lang=CODE"
        )
    return "tsv", "a file"


def _detect_folder(path: Path) -> tuple[str, str]:
    # The most telling first.
    for kind, pattern in (
        ("datasets", "dataset_dict.json"),
        ("datasets", "state.json"),
        ("kaldi", "wav.scp"),
        ("datasets", "*.parquet"),
        ("datasets", "*.arrow"),
        ("webdataset", "*.tar"),
        ("webdataset", "*.tgz"),
        ("webdataset", "*.tar.gz"),
    ):
        for place in (pattern, f"*/{pattern}"):
            if next(path.glob(place), None):
                return kind, f"{place} is there"
    return "folder", "nothing in it says that it is another kind"


def shards(pattern: str) -> list[Path]:
    """Return the tar files of a folder or pattern; ``{000..127}`` counts, as in bash.

    Raises:
        RecipeError: There are none, or one that a count names is missing.
    """
    path = Path(pattern)
    if path.is_dir():
        inside = sorted(p for p in path.rglob("*") if p.name.lower().endswith(_TARS))
        if not inside:
            raise RecipeError(f"{pattern}: no tar file below it ({' '.join(_TARS)})")
        return inside
    found = []
    for name in _expand(pattern):
        one = Path(name)
        if not set("*?[") & set(name):
            if not one.is_file():
                raise RecipeError(f"{one}: shard not found; named by {pattern}")
            found.append(one)
            continue
        # A pattern starts at the last folder without one.
        fixed = Path(re.split(r"[*?[]", name)[0] + "x").parent
        found += sorted(fixed.glob(str(one.relative_to(fixed))))
    if not found:
        raise RecipeError(f"{pattern}: no shard fits; put the pattern into quotes")
    return found


def _expand(pattern: str) -> list[str]:
    """Write out the first ``{0..9}`` or ``{a,b}``, then the others."""
    found = re.search(r"\{(?:(\d+)\.\.(\d+)|([^{}]*,[^{}]*))\}", pattern)
    if not found:
        return [pattern]
    if found[3] is not None:
        values = found[3].split(",")
    else:
        first, last = int(found[1]), int(found[2])
        values = [f"{n:0{len(found[1])}d}" for n in range(first, last + 1)]
    head, tail = pattern[: found.start()], pattern[found.end() :]
    return [one for value in values for one in _expand(head + value + tail)]


def split_of(name: str) -> str:
    """Return the split that a file's, folder's or table's name tells, or nothing."""
    words = {_SPLITS[w] for w in re.split("[^a-z]+", name.lower()) if w in _SPLITS}
    return words.pop() if len(words) == 1 else ""
