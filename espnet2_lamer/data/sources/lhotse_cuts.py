"""Cuts of lhotse: JSON lines, with recordings, offsets and supervisions."""

import gzip
import json
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from espnet2_lamer.data.segments import Times
from espnet2_lamer.data.sets import Utterance
from espnet2_lamer.data.sources.rows import Reading, check_unique, row
from espnet2_lamer.data.sources.source import Source, split_of
from espnet2_lamer.errors import RecipeError, require, short_reason

# Bytes of a line; a cut has some hundred.
_LONGEST_LINE = 2**24
_CLOSE = 0.005  # s: what lhotse's own rounding leaves


def read(source: Source, reading: Reading) -> list[Utterance]:
    """Read a CutSet: an utterance per supervision, or per cut where it has none.

    The language is a supervision's, or ``lang`` or ``language`` of its or the cut's
    ``custom``, where ``split``, ``source`` and ``romanisation`` may be, too; without it
    the file's name may tell the split. Relative paths are looked for from the file's
    folder, then from here.

    Raises:
        RecipeError: A line is no cut of a plain part of one file with one channel.
    """
    require("lhotse", f"reading {source.path}")
    from lhotse.serialization import deserialize_item

    path = Path(source.path)
    rows: list[Utterance] = []
    for where, line in _lines(path):
        try:
            value = json.loads(line)
            kind = value.get("type") if isinstance(value, dict) else "no cut"
            cut = deserialize_item(value) if kind == "MonoCut" else None
        except (ValueError, TypeError, KeyError, AttributeError, AssertionError) as e:
            reason = short_reason(e)
            raise RecipeError(
                f"{where}: not a line of a CutSet ({reason}); write the file again by "
                "cuts.to_file"
            ) from None
        if cut is None:
            raise RecipeError(f"{where}: found {_what(value)}")
        rows += _rows(source, cut, where, path)
    if not rows:
        raise RecipeError(f"{path}: no cuts; expected a line for each")
    check_unique(rows)
    return rows


def _lines(path: Path) -> Iterator[tuple[str, str]]:
    """Yield place and text of each line; none is longer than any cut is."""
    try:
        with open(path, "rb") as file:
            packed = file.read(2) == b"\x1f\x8b"
        with gzip.open(path) if packed else open(path, "rb") as lines:
            number = 0
            while line := lines.readline(_LONGEST_LINE):
                number += 1
                if len(line) == _LONGEST_LINE:
                    raise RecipeError(
                        f"{path}:{number}: a line of more than {len(line)} bytes; "
                        "expected a cut, without its sound"
                    )
                if line.strip():
                    yield f"{path}:{number}", line.decode()
    except UnicodeDecodeError as error:
        byte = f"byte {error.start + 1} is 0x{error.object[error.start]:02x}"
        raise RecipeError(
            f"{path}:{number}: {byte}, expected UTF-8; write the file again by "
            "cuts.to_file"
        ) from None
    except (OSError, EOFError, zlib.error) as error:
        if isinstance(error, FileNotFoundError):
            raise RecipeError(f"{path}: CutSet not found") from None
        raise RecipeError(
            f"{path}: damaged or cut short ({short_reason(error)}); copy it again"
        ) from None


def _what(value: Any) -> str:
    kind = value.get("type", "") if isinstance(value, dict) else ""
    if kind:
        return (
            f"a {kind}, expected MonoCut: a plain part of one recording; save the "
            "sound and take what comes: cuts.save_audios(FOLDER).to_file(FILE)"
        )
    return (
        "no cut, expected type MonoCut; join recordings and supervisions: "
        "lhotse cut simple -r RECORDINGS -s SUPERVISIONS CUTS"
    )


def _rows(source: Source, cut: Any, where: str, path: Path) -> Iterator[Utterance]:
    audio, recording = _audio(cut, where, path), cut.recording
    for said in cut.supervisions or [None]:
        first, length = cut.start, cut.duration
        if said is not None:
            # The time of a supervision is that of its cut.
            first, length = cut.start + said.start, said.duration
        custom = {**(cut.custom or {}), **((said and said.custom) or {})}
        values: dict[str, object] = {
            "text": said and said.text,
            "speaker": said and said.speaker,
            "lang": (said and said.language)
            or custom.get("lang")
            or custom.get("language"),
            **{key: custom.get(key) for key in ("romanisation", "source", "split")},
        }
        place = f"{where}, {cut.id}" + (f", {said.id}" if said else "")
        last, end = first + length, recording.duration
        if first < -_CLOSE or last > end + 0.5 or first >= end:
            raise RecipeError(
                f"{place}: {first:g} s to {last:g} s is outside the recording, which "
                f"has {end:g} s; correct it, e.g. by lhotse fix"
            )
        start = max(first, 0.0) if first > _CLOSE else 0.0
        times: Times = start, None if last > end - _CLOSE else last
        whole = len(cut.supervisions) < 2
        utt_id = cut.id if whole else said.id
        split = split_of(path.name)
        yield row(source, utt_id, audio, values, place, times, split)


def _audio(cut: Any, where: str, path: Path) -> str:
    """Return the absolute path of a cut's sound."""
    where = f"{where}, {cut.id}"
    recording = cut.recording
    if recording is None:
        raise RecipeError(
            f"{where}: a cut without a recording (of features alone); expected audio"
        )
    save = "save the sound: cuts.save_audios(FOLDER).to_file(FILE)"
    if len(recording.sources) != 1 or recording.num_channels != 1:
        raise RecipeError(
            f"{where}: {recording.num_channels} channels in {len(recording.sources)} "
            f"files, expected one of each; {save}"
        )
    if recording.transforms:
        raise RecipeError(
            f"{where}: the recording is changed as it is read (speed, volume or the "
            f"like), expected plain sound; {save}"
        )
    origin = recording.sources[0]
    if origin.type != "file":
        why = {
            "command": "commands in files are never run",
            "url": "nothing is fetched",
        }
        raise RecipeError(
            f"{where}: audio of type {origin.type}, expected file; "
            f"{why.get(origin.type, 'the sound is not in the file')}; {save}"
        )
    places = path.parent.absolute(), Path.cwd()
    there = [p / origin.source for p in places if (p / origin.source).is_file()]
    return str(there[0] if there else places[0] / origin.source)
