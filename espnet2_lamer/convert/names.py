"""Names of checkpoints that mean something on another machine."""

import re

from espnet2_lamer.convert.torchaudio_bundle import PREFIX

_ID = re.compile(r"\w[\w.-]*/\w[\w.-]*")
_BUNDLE = re.compile(f"({re.escape(PREFIX)})?HUBERT_[A-Z0-9_]+")
# Where huggingface_hub keeps what it fetched.
_CACHED = re.compile(r"models--([\w.-]+?)--([\w.-]+)/snapshots/")


def can_be_fetched(name: str) -> bool:
    """Whether a name may be a Hugging Face id or a torchaudio bundle.

    Names come from files of others: nothing else may decide what is read here.
    """
    return bool(_ID.fullmatch(name) or _BUNDLE.fullmatch(name))


def public_name(source: str) -> str:
    """Name a checkpoint without the directories of this machine.

    Args:
        source: Hugging Face id, torchaudio bundle, ``s3prl:NAME``, or a path.

    Returns:
        The same where it is a public name already, the id of a directory in Hugging
        Face's cache, and the last part of any other path.
    """
    if source.startswith("s3prl:") or can_be_fetched(source):
        return source
    if cached := _CACHED.search(source):
        return "/".join(cached.groups())
    return source.rstrip("/").rpartition("/")[2]
