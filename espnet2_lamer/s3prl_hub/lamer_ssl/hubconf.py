"""S3PRL entries: ``lamer_ssl_local``, ``lamer_ssl_url``, ``lamer_ssl_custom``."""

import os

from espnet2_lamer.compat import tell_lengths_to_upstreams as _tell_lengths

from .expert import UpstreamExpert as _UpstreamExpert


def lamer_ssl_custom(ckpt: str, *args, refresh: bool = False, **kwargs):
    """Load a model from a path or a URL; ``refresh`` fetches a URL again."""
    if str(ckpt).startswith(("http://", "https://")):
        return lamer_ssl_url(ckpt, *args, refresh=refresh, **kwargs)
    return lamer_ssl_local(ckpt, *args, **kwargs)


def lamer_ssl_local(ckpt: str, *args, **kwargs):
    """Load a model from a path, see :class:`UpstreamExpert`."""
    if not os.path.exists(ckpt):
        raise FileNotFoundError(f"lamer_ssl: checkpoint {ckpt} not found")
    _tell_lengths()
    return _UpstreamExpert(ckpt, *args, **kwargs)


def lamer_ssl_url(ckpt: str, *args, refresh: bool = False, **kwargs):
    """Load a model-zoo zip from a URL."""
    from s3prl.util.download import _urls_to_filepaths

    path = _urls_to_filepaths(ckpt, refresh=refresh)
    return lamer_ssl_local(path, *args, **kwargs)
