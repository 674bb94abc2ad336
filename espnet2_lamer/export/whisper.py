"""The self-contained form of an experiment on Whisper."""

from copy import deepcopy
from pathlib import Path

import yaml

from espnet2_lamer.export.zoo import write_model
from espnet2_lamer.fileio.foreign import read_yaml
from espnet2_lamer.whisper.lora import remove_lora
from espnet2_lamer.whisper.text import token_list


def write_full_whisper(
    config: str | Path, checkpoint: str | Path | None, output_dir: str | Path
) -> tuple[Path, Path]:
    """Write config and weights that need neither Whisper's file nor the experts'.

    An experiment's epoch files hold what was added and the hash of Whisper's file
    only. Here Whisper's tensors join them, and a student's teachers are left out.
    Without a ``checkpoint`` the model is packed as built. The paths of ``config.yaml``
    and ``model.pth`` in ``output_dir`` are returned.
    """
    from espnet2_lamer.tasks.asr import load_whisper_model

    model = load_whisper_model(config, checkpoint)
    settings = read_yaml(config)
    lora = dict(settings["encoder_conf"].get("lora") or {"method": "frozen"})
    lora.pop("train_language", None)
    if model.config.method == "student":
        for teacher in model.config.languages:
            remove_lora(model, teacher)
        model.decoder.new_tokens.clear()
        lora |= {"languages": [], "language_tokens": {}}
    for half in (model.encoder, model.decoder):
        half.drop_base_hash()
        # A copy: YAML would write an alias.
        more = {"whisper": None, "dims": half.dims, "lora": deepcopy(lora)}
        settings[f"{half.side}_conf"] |= more
    settings["token_list"] = list(token_list(model.vocab_size))
    settings["model_conf"] |= {"experts": {}, "teacher_cache": None}
    # The token list is long: libyaml takes a tenth of the time, where it is there.
    dumper = getattr(yaml, "CSafeDumper", yaml.SafeDumper)
    text = yaml.dump(settings, Dumper=dumper, sort_keys=False, allow_unicode=True)
    return write_model(output_dir, text, model.state_dict())
