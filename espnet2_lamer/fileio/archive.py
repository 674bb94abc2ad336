"""Model zips: written the same way every time, checked before they are unpacked."""

import shutil
import stat
import zipfile
from collections.abc import Callable, Container, Mapping
from pathlib import Path, PurePosixPath
from typing import Any

import yaml

from espnet2_lamer.errors import RecipeError
from espnet2_lamer.fileio.atomic import atomic_path, write_text
from espnet2_lamer.fileio.foreign import clear_errors, parse_yaml
from espnet2_lamer.fileio.system import check_space

META = "meta.yaml"
# Says that a folder was unpacked to the end; no member may say it before.
COMPLETE = ".complete"
# Member, its settings, paths of unpacked files -> what is written of the settings.
Prepare = Callable[[str, dict[str, Any], Container[str]], dict[str, Any]]
MAX_MEMBERS = 1000
MAX_BYTES = 32 * 2**30  # a HuBERT X-Large in fp32 is 4 GB
MAX_META_BYTES = 2**20
# Text packs at most 50:1 or so; what swells more is a decompression bomb.
MAX_RATIO = 200


def write_archive(path: str | Path, members: Mapping[str, Path | bytes]) -> None:
    """Atomically write an uncompressed zip whose bytes depend on the members only.

    Member times are fixed (1980-01-01) and the order is the mapping's. Weights do not
    compress, so nothing is compressed, as in ESPnet's own archives.

    Args:
        path: The zip.
        members: Name inside the zip -> file to copy, or content.
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
    """Refuse a model zip that would write outside its target or fill the disk.

    Args:
        path: A zip in the format of ``espnet2.bin.pack``.
        max_bytes: Largest sum of uncompressed member sizes.

    Returns:
        The content of its ``meta.yaml``.

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
            infos = archive.infolist()
            _check_sizes(path, infos, max_bytes)
            _check_names(path, infos)
            meta = _read_meta(path, archive)
            damaged = archive.testzip()
    except RecipeError:
        raise
    except Exception as error:  # damage shows in zlib, bz2, struct, codecs ...
        raise RecipeError(f"{path}: not a readable zip file: {error}") from error
    if damaged is not None:
        raise RecipeError(f"{path}: member {damaged!r} is damaged; fetch it again")
    return meta


def extract_zip(
    path: str | Path,
    directory: str | Path,
    meta: Mapping,
    prepare: Prepare | None = None,
) -> None:
    """Unpack a zip that :func:`check_zip` let pass, as ESPnet's ``unpack`` does.

    In the YAML files that ``meta.yaml`` names, every string that is the name of a
    member becomes the path of the unpacked file.

    Args:
        path: The zip.
        directory: Where its members go.
        meta: What :func:`check_zip` returned.
        prepare: Called with the name of each, its settings, and the paths of all
            unpacked files; returns what is written, or refuses.

    Raises:
        RecipeError: A YAML file is malformed, or no mapping.
    """
    path, directory = Path(path), Path(directory)
    with clear_errors(path), zipfile.ZipFile(path) as archive:
        needed = sum(info.file_size for info in archive.infolist())
        check_space(directory, needed, "unpacked files", "name another folder")
        files = {
            PurePosixPath(name): str(directory / name) for name in archive.namelist()
        }
        for name in archive.namelist():
            if name not in meta["yaml_files"].values():
                archive.extract(name, directory)
                continue
            settings = parse_yaml(archive.read(name), f"{path}: {name}")
            if not isinstance(settings, dict):
                raise RecipeError(
                    f"{path}: {name}: found {type(settings).__name__}, expected a "
                    "mapping, as ESPnet writes it"
                )
            settings = _with_paths(settings, files)
            if prepare is not None:
                settings = prepare(name, settings, {*files.values()})
            write_text(directory / name, yaml.safe_dump(settings))


def _with_paths(value: Any, files: Mapping[PurePosixPath, str]) -> Any:
    if isinstance(value, dict):
        return {key: _with_paths(item, files) for key, item in value.items()}
    if isinstance(value, list):
        return [_with_paths(item, files) for item in value]
    if isinstance(value, str):
        return files.get(PurePosixPath(value), value)
    return value


def _check_sizes(path: Path, infos: list[zipfile.ZipInfo], max_bytes: int) -> None:
    if len(infos) > MAX_MEMBERS:
        raise RecipeError(
            f"{path}: {len(infos)} members, expected at most {MAX_MEMBERS}"
        )
    total = sum(info.file_size for info in infos)
    if total > max_bytes:
        raise RecipeError(
            f"{path}: would unpack to {total} bytes, expected at most {max_bytes}"
        )
    for info in infos:
        if info.file_size > MAX_RATIO * max(info.compress_size, 1024):
            raise RecipeError(
                f"{path}: member {info.filename!r} would swell from "
                f"{info.compress_size} to {info.file_size} bytes; refused"
            )


def _check_names(path: Path, infos: list[zipfile.ZipInfo]) -> None:
    seen: set[str] = set()
    for info in infos:
        name = info.filename
        kind = stat.S_IFMT(info.external_attr >> 16)
        if kind not in (0, stat.S_IFREG, stat.S_IFDIR):
            raise RecipeError(f"{path}: member {name!r} is a link or device; refused")
        # A colon would be a drive, a backslash a separator, on Windows.
        parts = name.rstrip("/").split("/")
        if name.startswith("/") or {"..", ".", ""} & set(parts) or set("\\:") & {*name}:
            raise RecipeError(
                f"{path}: member {name!r} is not a plain relative path; refused"
            )
        if parts[0] == COMPLETE:
            raise RecipeError(
                f"{path}: member {name!r} has the name of the file that marks a "
                "finished unpacking; refused"
            )
        if name in seen:
            raise RecipeError(f"{path}: member {name!r} occurs twice; refused")
        seen.add(name)
    files = {info.filename for info in infos if not info.is_dir()}
    for name in seen:
        for parent in PurePosixPath(name).parents:
            if str(parent) in files:
                raise RecipeError(
                    f"{path}: {str(parent)!r} is both a file and a folder; refused"
                )


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
