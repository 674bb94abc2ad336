"""S3PRL's upstreams, built by S3PRL; a file of theirs only where it is trusted."""

from typing import Any

import torch

from espnet2_lamer.compat import patch_torchaudio_for_s3prl, quiet_nltk
from espnet2_lamer.errors import RecipeError, short_reason
from espnet2_lamer.fileio.trust import protect, split_s3prl


def load_s3prl(source: str) -> Any:
    """Build an ``s3prl.nn.S3PRLUpstream``.

    Args:
        source: ``s3prl:NAME``, or ``s3prl:NAME:FILE`` inside
            :func:`~espnet2_lamer.fileio.trust.trusting_s3prl_files`.

    Raises:
        RecipeError: The file is not trusted, or S3PRL does not know the upstream or
            cannot load it.
    """
    name, file = split_s3prl(source)
    protect()
    quiet_nltk()
    patch_torchaudio_for_s3prl()
    from s3prl.nn import S3PRLUpstream

    if name not in S3PRLUpstream.available_names():
        raise RecipeError(
            f"upstream {source!r}: S3PRL has no upstream {name!r}; s3prl.hub lists "
            "their names"
        )
    # A head and its upstream must not share random numbers.
    with torch.random.fork_rng(devices=[]):
        try:
            return S3PRLUpstream(name, *file)
        except Exception as error:  # every upstream fails in its own way
            raise RecipeError(
                f"upstream {source!r}: S3PRL cannot load it ({short_reason(error)})"
            ) from error
