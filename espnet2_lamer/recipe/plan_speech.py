"""What speech a plan counts on: seconds and text per language, read and not written."""

from collections import Counter, defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from espnet2_lamer.constants import RECEPTIVE_FIELD, SAMPLE_RATE
from espnet2_lamer.data.audio import file_seconds, over_files
from espnet2_lamer.data.corpora import CORPORA
from espnet2_lamer.data.division import divide
from espnet2_lamer.data.hours import PAPER_HOURS
from espnet2_lamer.data.manifest import read_folder, read_manifest
from espnet2_lamer.data.mini import MINI_SETS
from espnet2_lamer.data.sets import SPLITS, read_if_there
from espnet2_lamer.errors import RecipeError
from espnet2_lamer.recipe.options import Options

#: Upper ends of the buckets of utterance length, in seconds.
BUCKETS = (2, 5, 10, 20, 30, 60)
#: Files per set whose header is read; of more an even sample stands for the others.
HEADERS = 2000
# Where only hours are known.
_TYPICAL = 5.0


@dataclass
class Part:
    """One split of one language.

    Attributes:
        seconds: Lengths of utterances whose header could be read.
        weight: Utterances that each of them stands for.
        text: Utterances with text, of ``files``.
        files: Utterances.
        broken: Why headers could not be read, and how often.
    """

    seconds: list[float] = field(default_factory=list)
    weight: float = 1.0
    text: int = 0
    files: int = 0
    broken: Counter[str] = field(default_factory=Counter)

    def hours(self, low: float = 0.0, high: float = float("inf")) -> float:
        """Hours of utterances of at least ``low`` and at most ``high`` seconds."""
        chosen = (s for s in self.seconds if low <= s <= high)
        return self.weight * sum(chosen) / 3600

    def buckets(self) -> list[float]:
        """Hours of each of :data:`BUCKETS`, and of what is longer."""
        found = [0.0] * (len(BUCKETS) + 1)
        for seconds in self.seconds:
            found[sum(seconds > end for end in BUCKETS)] += seconds
        return [self.weight * total / 3600 for total in found]


@dataclass
class Speech:
    """All of it, by language and split, and where the figures are from."""

    parts: dict[str, dict[str, Part]]
    source: str
    measured: bool


def find_speech(options: Options) -> Speech:
    """Count speech: of stage 1's sets if all are there, else as the corpus says.

    A manifest is read and divided as stage 1 would, in memory. The embedded corpus is
    known by its minutes, and public corpora before stage 1 by the paper's hours.

    Raises:
        RecipeError: A manifest that stage 1 would refuse to read, or no such corpus.
    """
    sets = {
        lang: {split: options.datadir / f"{split}_{lang}" for split in SPLITS}
        for lang in options.langs
    }
    if all((splits["train"] / "wav.scp").is_file() for splits in sets.values()):
        return _prepared(options, sets)
    if options.corpus == "manifest":
        return _manifest(options)
    if options.corpus == "mini":
        return _stated(
            {
                lang: {
                    split: MINI_SETS[split if split != "test" else "asr_test"][
                        "minutes"
                    ].get(lang, 0.0)
                    / 60
                    for split in SPLITS
                }
                for lang in options.langs
            },
            "the embedded corpus's declared minutes",
        )
    unknown = [name for name in options.corpus.split() if name not in CORPORA]
    if unknown or not options.corpus:
        known = ", ".join(("mini", "manifest", *CORPORA))
        raise RecipeError(f"--corpus {options.corpus!r}: expected some of {known}")
    hours = {lang: {"train": PAPER_HOURS.get(lang, 0.0)} for lang in options.langs}
    text = "the paper's hours, not counted here: run stage 1, then plan again"
    return _stated(hours, text)


def _stated(hours: Mapping[str, Mapping[str, float]], source: str) -> Speech:
    parts = {
        lang: {
            split: Part(
                [_TYPICAL] * bool(amount),
                weight=amount * 3600 / _TYPICAL,
                text=round(amount * 3600 / _TYPICAL),
                files=round(amount * 3600 / _TYPICAL),
            )
            for split, amount in splits.items()
        }
        for lang, splits in hours.items()
    }
    return Speech(parts, source, measured=False)


def _prepared(options: Options, sets: Mapping[str, Mapping[str, Path]]) -> Speech:
    parts: dict[str, dict[str, Part]] = {}
    for lang, splits in sets.items():
        parts[lang] = {}
        for split, folder in splits.items():
            wavs = read_if_there(folder / "wav.scp")
            texts = read_if_there(folder / "text")
            parts[lang][split] = _headers(wavs, len(texts), options.nj)
    return Speech(parts, f"headers of the sets in {options.datadir}", measured=True)


def _manifest(options: Options) -> Speech:
    path = Path(options.manifest)
    if not options.manifest:
        raise RecipeError(
            "--corpus manifest needs --manifest: a TSV file or a folder of audio per "
            "language"
        )
    read = read_folder if path.is_dir() else read_manifest
    rows = [row for row in read(path) if row.source not in options.exclude_sources]
    rows = [row for row in rows if row.lang in options.langs]
    divide(rows, options.seed)
    wavs: dict[tuple[str, str], dict[str, str]] = defaultdict(dict)
    texts: Counter[tuple[str, str]] = Counter()
    for row in rows:
        wavs[row.lang, row.split][row.utt_id] = row.path
        texts[row.lang, row.split] += bool(row.text)
    parts = {
        lang: {
            split: _headers(wavs[lang, split], texts[lang, split], options.nj)
            for split in SPLITS
        }
        for lang in options.langs
    }
    return Speech(parts, f"headers of the files of {path}", measured=True)


def _headers(wavs: Mapping[str, str], texts: int, nj: int) -> Part:
    step = -(-len(wavs) // HEADERS) or 1
    chosen = dict(list(wavs.items())[::step])
    part = Part(text=texts, files=len(wavs), weight=len(wavs) / max(1, len(chosen)))
    for _, seconds, problem in over_files(_seconds, chosen, nj, "read headers"):
        if problem:
            part.broken[problem.split(":")[0]] += 1
        else:
            part.seconds.append(seconds)
    return part


def _seconds(utt: str, path: str) -> float:
    from espnet2_lamer.data.audio_decoding import Unusable

    if not Path(path).is_file():
        raise Unusable("file not found")
    return file_seconds(utt, path)


def shortest(options: Options) -> float:
    """Seconds that an utterance must have: ``--min_duration``, and a frame."""
    return max(options.min_duration, RECEPTIVE_FIELD / SAMPLE_RATE)
