"""A Whisper experiment's model, rebuilt from its config and weights."""

import logging
from pathlib import Path

from espnet2_lamer.errors import RecipeError
from espnet2_lamer.fileio.foreign import check_weights, clear_errors
from espnet2_lamer.precision import native_bf16
from espnet2_lamer.tasks.asr import LamerASRTask, register_asr
from espnet2_lamer.whisper.model import WhisperLoraModel


def load_model(
    config: str | Path, checkpoint: str | Path | None = None, device: str = "cpu"
) -> WhisperLoraModel:
    """Build an experiment's model.

    Args:
        config: ``config.yaml`` of an experiment, or of a packed model.
        checkpoint: One of its epoch files; ``None`` leaves it as it starts.
        device: Where to.

    Returns:
        The model, in eval mode; in float32 where it was trained in bf16 and the device
        only emulates that.

    Raises:
        RecipeError: The config is of another model, or does not fit the checkpoint.
    """
    register_asr()
    if checkpoint is not None:
        check_weights(checkpoint)
    with clear_errors(config):
        model, _ = LamerASRTask.build_model_from_file(config, checkpoint, device)
    if not isinstance(model, WhisperLoraModel):
        raise RecipeError(f"{config}: model: expected whisper_lora")
    if model.amp_dtype is not None:
        native, reason = native_bf16(device)
        if not native:
            logging.info("%s: used in float32, not bf16: %s", config, reason)
            model.amp_dtype = None
    return model.eval()
