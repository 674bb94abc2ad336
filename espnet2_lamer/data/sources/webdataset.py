"""Tar shards of WebDataset's form: files of one name are one utterance.

Python's own tarfile reads them: the webdataset package runs commands that stand in
names of shards, and unpickles members.
"""

import json
import logging
import tarfile
import zlib
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

from espnet2_lamer.data.audio_files import EXTENSIONS, is_hidden
from espnet2_lamer.data.sets import Utterance
from espnet2_lamer.data.sources.rows import (
    NAMES,
    Reading,
    check_unique,
    clean_value,
    row,
)
from espnet2_lamer.data.sources.source import Source, shards, split_of
from espnet2_lamer.data.sources.stored_audio import (
    LARGEST_AUDIO,
    LARGEST_RATIO,
    LARGEST_TEXT,
)
from espnet2_lamer.errors import RecipeError, short_reason

_TEXT = (".txt", ".json", ".cls")
_PICKLES = (".pyd", ".pkl", ".pickle", ".pth", ".pt")
# Bytes of padding and headers.
_SPARE = 100_000

#: Key of a sample, and its members: suffix to content.
_Sample = tuple[str, dict[str, bytes]]


def read(source: Source, reading: Reading) -> list[Utterance]:
    """Read shards: a file, a folder, or a pattern such as ``'train-{000..127}.tar'``.

    A sample has one audio file and may have ``.txt`` (the text), ``.json`` (by the keys
    of :data:`~.rows.NAMES`) and ``.cls`` (the language's code). The split is what the
    JSON says, or the name of the shard or its folder. Audio is written out, once.

    Raises:
        RecipeError: A shard is damaged, or holds what has no place in one: names that
            lead elsewhere, links, pickles, a sample without audio.
    """
    files = shards(source.path)
    reading.store.open(source, files)
    rows = []
    used: dict[str, str] = {}
    there: set[str] = set()
    for shard in files:
        split = split_of(shard.name) or split_of(shard.parent.name)
        for key, members in _samples(shard, reading):
            where = f"{shard}, {key}"
            values = _values(source, members, where, used, there)
            audio = {name: data for name, data in members.items() if name in EXTENSIONS}
            if len(audio) != 1:
                raise RecipeError(
                    f"{where}: {len(audio)} audio files ({', '.join(members)}), "
                    "expected one; a key ends at the first dot of a name, and its "
                    "files lie side by side"
                )
            ((suffix, data),) = audio.items()
            utt_id = str(values.pop("id", None) or key)
            new = row(source, utt_id, "", values, where, split=split)
            if reading.wants(new.lang):
                new.path = reading.store.add(new.utt_id, data, suffix, where)
            rows.append(new)
    if not rows:
        raise RecipeError(f"{source.path}: no samples in {len(files)} shards")
    if there:
        said = ", ".join(f"{role} from {name}" for name, role in used.items())
        unused = ", ".join(sorted(there - used.keys())) or "none"
        logging.info("%s: %s; not used: %s", source.path, said, unused)
    check_unique(rows)
    return rows


def _samples(shard: Path, reading: Reading) -> Iterator[_Sample]:
    """Yield the samples of a shard, which is read once, from front to back."""
    last, members = "", {}
    limit = LARGEST_RATIO * shard.stat().st_size + _SPARE
    try:
        with tarfile.open(shard, "r|*") as tar:
            for info in tar:
                key, suffix = _key(shard, info)
                if tar.offset > limit:
                    raise RecipeError(
                        f"{shard}, {info.name}: unpacks to more than {limit / 1e6:.0f} "
                        "MB, as no archive of speech does; nothing more is unpacked"
                    )
                if not suffix or is_hidden(info.name):
                    continue
                if key != last:
                    if members:
                        yield last, members
                    last, members = key, {}
                if suffix not in (*EXTENSIONS, *_TEXT):
                    reading.leave_out(f"member {suffix}, not read", "any language")
                    continue
                most = LARGEST_TEXT if suffix in _TEXT else LARGEST_AUDIO
                if info.size > most:
                    raise RecipeError(
                        f"{shard}, {info.name}: {info.size} bytes, expected at most "
                        f"{most}; store long recordings as files"
                    )
                if suffix in members:
                    raise RecipeError(
                        f"{shard}, {key}: two files {suffix}, last {info.name}; a key "
                        "ends at the first dot of a name: rename them"
                    )
                members[suffix] = tar.extractfile(info).read()
        if members:
            yield last, members
    except (tarfile.TarError, EOFError, zlib.error, OSError) as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise
        raise RecipeError(
            f"{shard}: not a whole tar archive ({short_reason(error)}), after key "
            f"{last!r}; copy it again"
        ) from None


def _key(shard: Path, info: tarfile.TarInfo) -> tuple[str, str]:
    """Return key and last suffix of a member; none of a folder.

    Raises:
        RecipeError: Its name leads elsewhere, it is a link or a device, or a pickle.
    """
    where, path = f"{shard}, {info.name!r}", PurePosixPath(info.name)
    if path.is_absolute() or ".." in path.parts or "\\" in info.name:
        raise RecipeError(
            f"{where}: the name leads out of the archive; expected a plain one: do not "
            "use this shard, or pack it again"
        )
    if info.isdir():
        return "", ""
    if not info.isreg() or info.issparse():
        raise RecipeError(f"{where}: a link or device, expected files; pack it again")
    stem, _, rest = path.name.partition(".")
    suffix = "." + rest.rpartition(".")[2].lower() if rest else ".none"
    if suffix in _PICKLES:
        raise RecipeError(
            f"{where}: a pickle, which runs code as it is read; expected audio, .txt, "
            ".json or .cls: pack the shard without it"
        )
    return str(path.with_name(stem)), suffix


def _values(
    source: Source,
    members: dict[str, bytes],
    where: str,
    used: dict[str, str],
    there: set[str],
) -> dict[str, object]:
    """Return what a sample says, by the names of rows."""
    said: dict[str, object] = {}
    for suffix in _TEXT:
        if suffix not in members:
            continue
        try:
            text = members[suffix].decode("utf-8-sig")
            parsed = json.loads(text) if suffix == ".json" else None
        except (ValueError, RecursionError) as error:
            raise RecipeError(
                f"{where}{suffix}: {short_reason(error)}; expected "
                f"{'JSON in ' if suffix == '.json' else ''}UTF-8"
            ) from None
        if suffix == ".json":
            if not isinstance(parsed, dict):
                raise RecipeError(
                    f"{where}.json: found {type(parsed).__name__}, expected an object "
                    'such as {"lang": "deu", "text": "..."}'
                )
            there.update(parsed)
            for role, name in _roles(source, parsed, where):
                used[name] = role
                said.setdefault(role, parsed[name])
        elif suffix == ".txt":
            said["text"] = text
        else:
            said["lang"] = _label(text, where, source)
    return said


def _roles(source: Source, parsed: dict, where: str) -> Iterator[tuple[str, str]]:
    for role, names in NAMES.items():
        asked = source.settings.get(f"{role}_column")
        if asked and asked not in parsed:
            raise RecipeError(
                f"{where}.json: no key {asked!r} ({role}_column); found "
                f"{', '.join(sorted(parsed))}"
            )
        names = (asked,) if asked else names
        if role == "lang" and "lang" in source.settings:
            continue
        for name in names:
            if parsed.get(name) not in (None, ""):
                yield role, name
                break


def _label(text: str, where: str, source: Source) -> str:
    if clean_value(text, where).isdigit() and "lang" not in source.settings:
        raise RecipeError(
            f"{where}.cls: class {text.strip()}, expected a language's code; say which "
            f"by lang in .json, or webdataset:{source.path},lang=CODE"
        )
    return text
