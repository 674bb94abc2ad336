"""Make ESPnet (and, on request, S3PRL) know our classes."""


def register(s3prl: bool = False) -> None:
    """Put our classes into ESPnet's choices; safe to call any number of times.

    ESPnet has no plug-in hook: its choices are module-level tables, read when a
    parser is built or a model is loaded.

    Args:
        s3prl: Also patch torchaudio for S3PRL.
    """
    from espnet2_lamer.compat import quiet_nltk

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
        from espnet2_lamer.compat import patch_torchaudio_for_s3prl

        patch_torchaudio_for_s3prl()
