"""Make ESPnet (and, on request, S3PRL) know our classes."""


def register(s3prl: bool = False) -> None:
    """Put our classes into ESPnet's choices; safe to call any number of times.

    ESPnet has no plug-in hook: its choices are module-level tables, read when a
    parser is built or a model is loaded. From here on torch unpickles nothing in this
    process, whoever asks it to: files of others are data.

    Args:
        s3prl: Also make S3PRL importable and put ``lamer_ssl_local``,
            ``lamer_ssl_custom`` and ``lamer_ssl_url`` into ``s3prl.hub``.
    """
    from espnet2_lamer.compat import quiet_nltk
    from espnet2_lamer.fileio.trust import protect

    protect()
    quiet_nltk()

    from espnet2.tasks import abs_task, hubert

    from espnet2_lamer.asr.encoder.lamer_hubert import LamerHubertEncoder
    from espnet2_lamer.hubert.espnet_model import LamerHubertPretrainModel
    from espnet2_lamer.tasks.asr import register_asr
    from espnet2_lamer.train.schedulers import PolynomialDecayLR

    hubert.encoder_choices.classes["lamer_hubert"] = LamerHubertEncoder
    hubert.model_choices.classes["lamer"] = LamerHubertPretrainModel
    abs_task.scheduler_classes["polynomialdecaylr"] = PolynomialDecayLR
    register_asr()

    if s3prl:
        register_s3prl()


def register_s3prl() -> None:
    """Put our upstreams into ``s3prl.hub``; safe to call any number of times."""
    from espnet2_lamer.compat import patch_torchaudio_for_s3prl, quiet_nltk
    from espnet2_lamer.fileio.trust import protect

    protect()
    quiet_nltk()
    patch_torchaudio_for_s3prl()

    from s3prl import hub

    from espnet2_lamer.export.upstream.lamer_ssl import hubconf

    for name in ("lamer_ssl_local", "lamer_ssl_custom", "lamer_ssl_url"):
        setattr(hub, name, getattr(hubconf, name))
