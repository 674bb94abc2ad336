"""Upload to the Hugging Face Hub: one repository, one commit, said beforehand."""

import logging
import zipfile
from collections.abc import Mapping
from pathlib import Path

from espnet2_lamer.errors import RecipeError


def repository_files(
    packages: Mapping[str, Path], front: str
) -> dict[str, Path | zipfile.Path]:
    """Lay packages out as one repository: path in it -> file, or member of a zip.

    The members of the zip ``front`` lie at the top, so that the repository's page shows
    its card and ``ModelDownloader`` takes the repository's id. The files of a directory
    lie in a folder of its name; a zip or other file keeps its name.
    """
    files: dict[str, Path | zipfile.Path] = {}
    if front in packages and packages[front].suffix == ".zip":
        top = zipfile.Path(packages[front])
        names = [name for name in top.root.namelist() if not name.endswith("/")]
        files |= {name: top / name for name in names}
    for name, path in packages.items():
        if path.is_dir():
            inside = sorted(file for file in path.rglob("*") if file.is_file())
            parent = path.parent
            files |= {file.relative_to(parent).as_posix(): file for file in inside}
        elif name != front:
            files[path.name] = path
    return files


def upload_files(
    repo: str, files: Mapping[str, Path | zipfile.Path], dry_run: bool = False
) -> None:
    """Upload files in one commit; the repository is made if it is not there.

    Args:
        repo: ``user/name``; empty: nothing is uploaded.
        files: As :func:`repository_files` returns them.
        dry_run: Only log repository, files and sizes; no network, no token.

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
    doing = "would upload to" if dry_run else "uploading to"
    where = repo or "no repository (--hf_repo is empty)"
    total = sum(sizes.values()) / 1e6
    logging.info("%s %s: %d files, %.1f MB", doing, where, len(files), total)
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
        CommitOperationAdd(name, p.read_bytes() if isinstance(p, zipfile.Path) else p)
        for name, p in files.items()
    ]
    try:
        api = HfApi()
        api.create_repo(repo, exist_ok=True, private=False)
        api.create_commit(repo, operations, commit_message="Upload by lamer_ssl")
    except Exception as error:  # network, rights, quota: the Hub's words say which
        raise RecipeError(
            f"--hf_repo {repo}: upload failed ({error}); set HF_TOKEN to a token that "
            "may write there, then upload again"
        ) from error
    logging.info("uploaded to https://huggingface.co/%s", repo)


def _size(path: Path | zipfile.Path) -> int:
    if isinstance(path, zipfile.Path):
        return path.root.getinfo(path.at).file_size
    if path.is_file():
        return path.stat().st_size
    raise RecipeError(f"{path}: file not found; pack the model again")
