"""Model zips: written the same way every time, checked before they are unpacked."""

import shutil
import stat
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path, PurePosixPath
from typing import Any

from espnet2_lamer.errors import RecipeError
from espnet2_lamer.fileio.atomic import atomic_path
from espnet2_lamer.fileio.foreign import parse_yaml
from espnet2_lamer.fileio.system import check_space

META = "meta.yaml"
# Says that a folder was unpacked to the end; no member may say it before.
COMPLETE = ".complete"
MAX_MEMBERS = 1000
MAX_BYTES = 32 * 2**30  # a HuBERT X-Large in fp32 is 4 GB
MAX_META_BYTES = 2**20
# Text packs at most 50:1 or so; what swells more is a decompression bomb.
MAX_RATIO = 200


def write_archive(path: str | Path, members: Mapping[str, Path | bytes]) -> None:
    """Atomically write an uncompressed zip whose bytes depend on the members only.

    ``members`` are files to copy, or contents, by their names inside; their times are
    fixed (1980-01-01) and the order is the mapping's. Weights do not compress, so
    nothing is compressed, as in ESPnet's own archives.
    """
    needed = sum(
        len(source) if isinstance(source, bytes) else source.stat().st_size
        for source in members.values()
    )
    way_out = "name another folder with --expdir (--output)"
    check_space(Path(path).parent, needed, f"members of {Path(path).name}", way_out)
    with atomic_path(path) as temporary, zipfile.ZipFile(temporary, "w") as archive:
        for name, source in members.items():
            info = zipfile.ZipInfo(name)
            info.external_attr = (stat.S_IFREG | 0o644) << 16
            if isinstance(source, bytes):
                archive.writestr(info, source)
                continue
            # zipfile needs the size beforehand to choose the format for > 4 GB.
            info.file_size = source.stat().st_size
            with open(source, "rb") as reader, archive.open(info, "w") as writer:
                shutil.copyfileobj(reader, writer, 2**20)


def check_zip(path: str | Path, max_bytes: int = MAX_BYTES) -> dict[str, Any]:
    """Refuse a zip of ``espnet2.bin.pack`` that leaves its target or fills the disk.

    ``max_bytes`` is the largest sum of uncompressed member sizes. The content of its
    ``meta.yaml`` is returned.

    Raises:
        RecipeError: It is no zip, or has absolute, ``..`` or duplicate members, links,
            more than 1000 members, absurd sizes, or a ``meta.yaml`` that is missing,
            malformed, or names a file that is not a member.
    """
    path = Path(path)
    if not path.is_file():
        raise RecipeError(f"{path}: file not found; expected a model zip")
    try:
        with zipfile.ZipFile(path) as archive:
            for problem in _problems(archive.infolist(), max_bytes):
                raise RecipeError(f"{path}: {problem}; refused")
            meta = _read_meta(path, archive)
            damaged = archive.testzip()
    except RecipeError:
        raise
    except Exception as error:  # damage shows in zlib, bz2, struct, codecs ...
        raise RecipeError(f"{path}: not a readable zip file: {error}") from error
    if damaged is not None:
        raise RecipeError(f"{path}: member {damaged!r} is damaged; fetch it again")
    return meta


def _problems(infos: list[zipfile.ZipInfo], max_bytes: int) -> Iterator[str]:
    """Yield what speaks against unpacking these members."""
    if len(infos) > MAX_MEMBERS:
        yield f"{len(infos)} members, expected at most {MAX_MEMBERS}"
    total = sum(info.file_size for info in infos)
    if total > max_bytes:
        yield f"would unpack to {total} bytes, expected at most {max_bytes}"
    files = {info.filename for info in infos if not info.is_dir()}
    seen: set[str] = set()
    for info in infos:
        name, kind = info.filename, stat.S_IFMT(info.external_attr >> 16)
        packed, unpacked = info.compress_size, info.file_size
        if unpacked > MAX_RATIO * max(packed, 1024):
            yield f"member {name!r} would swell from {packed} to {unpacked} bytes"
        if kind not in (0, stat.S_IFREG, stat.S_IFDIR):
            yield f"member {name!r} is a link or device"
        # A colon would be a drive, a backslash a separator, on Windows.
        parts = name.rstrip("/").split("/")
        if name.startswith("/") or {"..", ".", ""} & set(parts) or set("\\:") & {*name}:
            yield f"member {name!r} is not a plain relative path"
        if parts[0] == COMPLETE:
            yield f"member {name!r} has the name of the mark of a finished unpacking"
        if name in seen:
            yield f"member {name!r} occurs twice"
        seen.add(name)
        for parent in PurePosixPath(name).parents:
            if str(parent) in files:
                yield f"{str(parent)!r} is both a file and a folder"


def _read_meta(path: Path, archive: zipfile.ZipFile) -> dict[str, Any]:
    names = archive.namelist()
    # ESPnet reads the first member of that name, in whatever folder.
    first = next((name for name in names if PurePosixPath(name).name == META), None)
    if first != META:
        raise RecipeError(
            f"{path}: found {first or 'no'} {META}, expected it first and at the top, "
            "as espnet2.bin.pack writes it"
        )
    if archive.getinfo(META).file_size > MAX_META_BYTES:
        raise RecipeError(f"{path}: {META} is larger than {MAX_META_BYTES} bytes")
    meta = parse_yaml(archive.read(META), f"{path}: {META}")
    for key in ("files", "yaml_files"):
        entries = meta.get(key) if isinstance(meta, dict) else None
        if not isinstance(entries, dict):
            raise RecipeError(f"{path}: {META}: {key} is not a mapping")
        for option, name in entries.items():
            if not isinstance(option, str) or name not in names:
                raise RecipeError(
                    f"{path}: {META}: {key}.{option} names {name!r}, which is not in "
                    "the zip"
                )
    return meta
