"""``register``: make ESPnet, and on request S3PRL, know our classes."""

from espnet2_lamer.compat import patch_torchaudio_for_s3prl


def register(s3prl: bool = False) -> None:
    """Put our classes into ESPnet's choices; safe to call any number of times.

    ESPnet has no plug-in hook: its choices are module-level tables, read when a
    parser is built or a model is loaded. From here on torch unpickles nothing in this
    process, whoever asks it to: files of others are data. With ``s3prl``, S3PRL becomes
    importable and gets ``lamer_ssl_local``, ``lamer_ssl_custom`` and ``lamer_ssl_url``.
    """
    from espnet2_lamer.tasks.asr import register_asr
    from espnet2_lamer.tasks.hubert import register_hubert

    register_hubert()
    register_asr()
    if s3prl:
        patch_torchaudio_for_s3prl()

        from s3prl import hub

        from espnet2_lamer.s3prl_hub.lamer_ssl import hubconf

        for name in ("lamer_ssl_local", "lamer_ssl_custom", "lamer_ssl_url"):
            setattr(hub, name, getattr(hubconf, name))
