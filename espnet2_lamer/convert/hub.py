"""A model's repository on the Hugging Face Hub: fetched once, then from the cache."""

import logging
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path

from espnet2_lamer.convert import huggingface
from espnet2_lamer.errors import RecipeError, short_reason
from espnet2_lamer.fileio.archive import META

# Matches no file: asks where a snapshot is, whatever is in it.
_NOTHING = ["/"]
_PACKED = (META, "config.yaml")


@dataclass(frozen=True)
class Choice:
    """What of a repository is the model.

    Attributes:
        kind: ``"directory"`` (transformers' form), ``"unpacked"`` (the members of a
            model zip, as stage 14 uploads them), or ``"file"`` (zip or adapter file).
        files: Their names, all at the repository's top.
    """

    kind: str
    files: list[str]


def choose(names: Collection[str], repo: str, file: str | None = None) -> Choice:
    """Choose the model among a repository's files; no code is ever fetched.

    A whole model comes before an adapter, which needs its base. ``file`` names a zip or
    an adapter file instead.

    Raises:
        RecipeError: There is none, or several of a kind.
    """
    top = sorted(name for name in names if "/" not in name and "\\" not in name)
    if file is not None:
        if file not in top or not file.endswith((".zip", ".safetensors")):
            there = [n for n in top if n.endswith((".zip", ".safetensors"))]
            raise RecipeError(
                f"{repo}: file: found {file!r}, expected a zip or an adapter file at "
                f"its top: {', '.join(there) or 'it has none'}"
            )
        return Choice("file", [file])
    weights = [name for name in huggingface.WEIGHT_FILES if name in top]
    if "config.json" in top and weights:
        # Not both formats of the same weights.
        stem, _, _ = weights[0].partition(".")
        form = "safetensors" if ".safetensors" in weights[0] else "bin"
        parts = [n for n in top if n.startswith(stem) and n.endswith(f".{form}")]
        return Choice("directory", [n for n in top if n.endswith(".json")] + parts)
    if {*_PACKED} <= {*top}:
        states = [name for name in top if name.endswith((".pth", ".pth.sha256"))]
        return Choice("unpacked", [*_PACKED, *states])
    for pattern in ("*.zip", "*.safetensors"):
        found = [name for name in top if fnmatch(name, pattern)]
        # Beside heads, which are other models.
        found = [name for name in found if name.startswith("ssl_")] or found
        if len(found) > 1:
            raise RecipeError(
                f"{repo}: found {', '.join(found)}; name one: load_model({repo!r}, "
                f"file={found[0]!r})"
            )
        if found:
            return Choice("file", found)
    raise RecipeError(
        f"{repo}: found {', '.join(top[:8]) or 'no files'}{' ...' * (len(top) > 8)}; "
        "expected config.json with model.safetensors, the members of a packed model "
        "(meta.yaml, config.yaml, model.pth), its zip, or an adapter file"
    )


def fetch_model(
    repo: str, revision: str | None = None, file: str | None = None
) -> tuple[Path, Choice]:
    """Return where a repository's model is on this machine, fetching it if needed.

    What the cache has of the revision is not fetched again. ``HF_HUB_OFFLINE=1``, and a
    network that does not answer, leave the cache alone to look into.

    Args:
        repo: ``user/name``.
        revision: Branch, tag or commit; ``None``: its main branch.
        file: As for :func:`choose`.

    Raises:
        RecipeError: As :func:`choose`, or it is neither in the cache nor to be had.
    """
    from huggingface_hub import HfApi, constants, snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    problem = "HF_HUB_OFFLINE is set"
    if not constants.HF_HUB_OFFLINE:
        try:
            names = HfApi().list_repo_files(repo, revision=revision)
        except Exception as error:  # of HTTP, of the network, of the Hub
            problem = f"{type(error).__name__}: {short_reason(error)}"
        else:
            choice = choose(names, repo, file)
            try:
                found = snapshot_download(
                    repo, revision=revision, allow_patterns=_exactly(choice.files)
                )
            except Exception as error:
                raise RecipeError(
                    f"{repo}: cannot be fetched ({short_reason(error)}); what came is "
                    f"kept in {constants.HF_HUB_CACHE}: try again"
                ) from error
            return Path(found), choice
    try:
        found = _cached(repo, revision, _NOTHING)
        choice = choose([path.name for path in found.iterdir()], repo, file)
        _cached(repo, revision, _exactly(choice.files))
    except Exception as error:
        which = f"revision {revision}" if revision else "its main revision"
        # That it is not there, these words say already.
        absent = isinstance(error, LocalEntryNotFoundError)
        why = "" if absent else f" ({short_reason(error)})"
        raise RecipeError(
            f"{repo}: {which} is not whole in the cache {constants.HF_HUB_CACHE}{why}, "
            f"and the Hub was not asked or did not give it ({problem}). Load "
            "it once with a network and without HF_HUB_OFFLINE, or "
            f"run `hf download {repo}` there and copy that cache (HF_HOME says where "
            "it is), or give a directory; a private repository needs HF_TOKEN"
        ) from error
    if not constants.HF_HUB_OFFLINE:
        logging.warning("%s: from the cache, %s (%s)", repo, found, problem)
    return found, choice


def _exactly(names: Sequence[str]) -> list[str]:
    """Patterns that these names alone fit: brackets in one would be a set."""
    return [name.replace("[", "[[]") for name in names]


def _cached(repo: str, revision: str | None, patterns: list[str]) -> Path:
    from huggingface_hub import snapshot_download

    return Path(
        snapshot_download(
            repo, revision=revision, allow_patterns=patterns, local_files_only=True
        )
    )
