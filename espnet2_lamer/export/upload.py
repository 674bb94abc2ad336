"""Upload to the Hugging Face Hub: one repository, one commit, said beforehand."""

import io
import logging
import zipfile
from collections.abc import Mapping
from pathlib import Path

from espnet2_lamer.errors import RecipeError


def repository_files(packages: Mapping[str, Path], front: str) -> dict[str, Path]:
    """Lay packages out as one repository.

    Args:
        packages: Zips, adapter files and directories by name.
        front: The zip whose members lie at the top, so that the repository's page
            shows its card and ``ModelDownloader`` takes the repository's id.

    Returns:
        Path in the repository -> the file, or ``zip/member`` for those of ``front``.
        The files of a directory lie in a folder of its name; a zip or other file keeps
        its name.
    """
    files: dict[str, Path] = {}
    if front in packages and packages[front].suffix == ".zip":
        with zipfile.ZipFile(packages[front]) as archive:
            files |= {
                name: packages[front] / name
                for name in archive.namelist()
                if not name.endswith("/")
            }
    for name, path in packages.items():
        if path.is_dir():
            inside = sorted(file for file in path.rglob("*") if file.is_file())
            parent = path.parent
            files |= {file.relative_to(parent).as_posix(): file for file in inside}
        elif name != front:
            files[path.name] = path
    return files


def upload_files(
    repo: str, files: Mapping[str, Path], dry_run: bool = False, private: bool = False
) -> None:
    """Upload files in one commit; the repository is made if it is not there.

    Args:
        repo: ``user/name``; empty: nothing is uploaded.
        files: As :func:`repository_files` returns them.
        dry_run: Only log repository, files and sizes; no network, no token.
        private: Of a repository that is made here.

    Raises:
        RecipeError: A file is missing, the repository's name is impossible, there is
            no token, or the Hub refused.
    """
    from huggingface_hub import CommitOperationAdd, HfApi, get_token
    from huggingface_hub.utils import validate_repo_id

    if not repo and not dry_run:
        logging.info("no --hf_repo: nothing is uploaded")
        return
    try:
        validate_repo_id(repo or None)
    except ValueError as error:
        raise RecipeError(
            f"--hf_repo: found {repo!r}, expected user/name ({error})"
        ) from error
    sizes = {name: _size(path) for name, path in files.items()}
    logging.info(
        "%s %s: %d files, %.1f MB",
        "would upload to" if dry_run else "uploading to",
        repo or "no repository (--hf_repo is empty)",
        len(files),
        sum(sizes.values()) / 1e6,
    )
    for name, size in sizes.items():
        logging.info("  %s (%.2f MB)", name, size / 1e6)
    if dry_run:
        return
    if get_token() is None:
        raise RecipeError(
            f"--hf_repo {repo}: found no token, expected one that may write there: set "
            "HF_TOKEN, or log in with `hf auth login`; --dry_run true needs none"
        )
    operations = [
        CommitOperationAdd(path_in_repo=name, path_or_fileobj=_content(path))
        for name, path in files.items()
    ]
    try:
        api = HfApi()
        api.create_repo(repo, exist_ok=True, private=private)
        api.create_commit(repo, operations, commit_message="Upload by lamer_ssl")
    except Exception as error:  # network, rights, quota: the Hub's words say which
        raise RecipeError(
            f"--hf_repo {repo}: upload failed ({error}); set HF_TOKEN to a token that "
            "may write there, then upload again"
        ) from error
    logging.info("uploaded to https://huggingface.co/%s", repo)


def _inside_zip(path: Path) -> tuple[Path, str] | None:
    """Split ``package.zip/member``."""
    for parent in path.parents:
        if parent.suffix == ".zip" and parent.is_file():
            return parent, path.relative_to(parent).as_posix()
    return None


def _size(path: Path) -> int:
    if path.is_file():
        return path.stat().st_size
    if found := _inside_zip(path):
        with zipfile.ZipFile(found[0]) as archive:
            return archive.getinfo(found[1]).file_size
    raise RecipeError(f"{path}: file not found; pack the model again")


def _content(path: Path) -> Path | io.BufferedIOBase:
    if path.is_file():
        return path
    archive, member = _inside_zip(path)
    with zipfile.ZipFile(archive) as opened:
        return io.BytesIO(opened.read(member))
