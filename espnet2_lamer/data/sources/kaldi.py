"""Kaldi data folders: ``wav.scp``, ``segments``, ``text`` and the other tables."""

import re
import shlex
from pathlib import Path

from espnet2_lamer.data.audio_files import EXTENSIONS
from espnet2_lamer.data.segments import SEGMENTS, Times, read_segments
from espnet2_lamer.data.sets import Utterance, read_if_there
from espnet2_lamer.data.sources.rows import Reading, check_unique, row
from espnet2_lamer.data.sources.source import Source, split_of
from espnet2_lamer.errors import RecipeError
from espnet2_lamer.fileio.datadir import read_table

# What a folder may say of utterances, by the names of rows.
_TABLES = {
    "text": "text",
    "speaker": "utt2spk",
    "lang": "utt2lang",
    "romanisation": "romanisation",
    "source": "utt2source",
}
# Decoders whose command stands for the file itself, and the arguments that change
# nothing of its sound.
_PLAIN = {
    "flac": re.compile("-[cds]+|--(decode|stdout|silent)"),
    "cat": re.compile("$."),
}


def read(source: Source, reading: Reading) -> list[Utterance]:
    """Read a data folder, or those in a folder, whose names then tell the splits.

    Commands in ``wav.scp`` are never run; ``flac -c -d -s FILE |`` and ``cat FILE |``
    stand for the file. Relative paths are looked for from the folder, from two above
    it, where Kaldi's recipes stand, and from here.

    Raises:
        RecipeError: A table cannot be read, names utterances without audio, or audio
            that is no file.
    """
    root = Path(source.path)
    folders = [root] if (root / "wav.scp").is_file() else []
    folders = folders or sorted(
        path.parent for path in root.glob("*/wav.scp") if path.parent.name[0] != "."
    )
    if not folders:
        raise RecipeError(
            f"{root}: no wav.scp in it or in its folders; expected a Kaldi data folder"
        )
    rows = [one for folder in folders for one in _read(folder, source)]
    if not rows:
        raise RecipeError(f"{root}: its tables are empty; expected `utt path` lines")
    check_unique(rows)
    return rows


def _read(folder: Path, source: Source) -> list[Utterance]:
    wav_scp = folder / "wav.scp"
    wavs = read_table(wav_scp)
    parts: dict[str, tuple[str, Times | None]] = {utt: (utt, None) for utt in wavs}
    if (folder / SEGMENTS).is_file():
        parts = dict(read_segments(folder / SEGMENTS))
    listing = wav_scp if parts.keys() == wavs.keys() else folder / SEGMENTS
    tables = {name: read_if_there(folder / table) for name, table in _TABLES.items()}
    for name, table in tables.items():
        if lost := [utt for utt in table if utt not in parts]:
            raise RecipeError(
                f"{folder / _TABLES[name]}: {len(lost)} of {len(table)} utterances are "
                f"not in {listing.name}, first {lost[0]!r}; take them out, e.g. by "
                f"Kaldi's utils/fix_data_dir.sh {folder}"
            )
    files = {name: audio_file(wav_scp, name, value) for name, value in wavs.items()}
    found = []
    for utt, (name, times) in parts.items():
        if name not in files:
            raise RecipeError(
                f"{folder / SEGMENTS}: utterance {utt!r} is of recording {name!r}, "
                "which wav.scp does not have; add it there, or take the line out"
            )
        values = {key: table.get(utt, "") for key, table in tables.items()}
        if values["speaker"] == utt:
            # How tables say that it is not known.
            values["speaker"] = ""
        where = f"{listing}, {utt}"
        path, split = files[name], split_of(folder.name)
        found.append(row(source, utt, path, values, where, times, split))
    return found


def audio_file(wav_scp: Path, name: str, value: str) -> str:
    """Return the path that a line of ``wav.scp`` names."""
    where = f"{wav_scp}, {name}"
    path = _of_command(value, where) if value.endswith("|") else value
    if re.search(r"\.ark:\d+$", path):
        raise RecipeError(
            f"{where}: found a place in an archive, {path!r}, expected an audio file; "
            "write the audio out first, e.g. by ESPnet's "
            "pyscripts/audio/format_wav_scp.py --audio-format flac"
        )
    if not path:
        raise RecipeError(f"{where}: no path; expected `recording path`")
    above = wav_scp.parent.absolute()
    places = (above, *above.parents[1:2], Path.cwd())
    there = [place / path for place in places if (place / path).is_file()]
    return str(there[0] if there else places[0] / path)


def _of_command(value: str, where: str) -> str:
    """Return the file that a harmless decoder reads."""
    try:
        program, *words = shlex.split(value[:-1])
    except ValueError:
        program, words = "", []
    plain = _PLAIN.get(Path(program).name)
    files = [word for word in words if not (plain and plain.fullmatch(word))]
    if plain and len(files) == 1 and files[0].lower().endswith(EXTENSIONS):
        return files[0]
    raise RecipeError(
        f"{where}: found the command {value!r}, expected a file; commands in files are "
        "never run. Run it yourself, once for each line, with its output to a file "
        "(in front of the last | add > FILE.wav), and name these files; rate, "
        "channels and format need no conversion"
    )
