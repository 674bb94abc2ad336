"""ESPnet's ASR task with this package's classes and bf16 training on a CPU."""

import argparse
import functools
import logging
import pickle
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from espnet2.asr.espnet_model import ESPnetASRModel
from espnet2.tasks.asr import (
    ASRTask,
    decoder_choices,
    encoder_choices,
    frontend_choices,
    model_choices,
)
from espnet2.utils.nested_dict_action import NestedDictAction

from espnet2_lamer.asr.frontend.states import StoredFeaturesFrontend
from espnet2_lamer.compat import bound_beams, prepare_espnet
from espnet2_lamer.constants import LID_ROUTED
from espnet2_lamer.errors import RecipeError, require, short_reason
from espnet2_lamer.fileio.foreign import check_weights, clear_errors
from espnet2_lamer.fileio.trust import (
    OPTION,
    S3PRL_PREFIX,
    s3prl_files_trusted,
    split_s3prl,
    trusting_s3prl_files,
)
from espnet2_lamer.parallel import keep_freed_memory
from espnet2_lamer.precision import (
    AUTO,
    native_bf16,
    settle_amp_dtype,
    settled_amp_dtype,
)
from espnet2_lamer.tasks.lid_routed import LidRoutedASRModel
from espnet2_lamer.tasks.option_check import check_init_param, check_packages
from espnet2_lamer.tasks.tuning import build_tuned_optimizer
from espnet2_lamer.tasks.upstream_frontend import LamerUpstreamFrontend
from espnet2_lamer.train.checkpoint import LATEST, CheckedTrainer
from espnet2_lamer.train.console import one_training

if TYPE_CHECKING:
    from espnet2_lamer.whisper.model import WhisperLoraModel

# The name of Whisper's model, encoder and decoder.
_WHISPER = "whisper_lora"


class _WithoutWhisper(torch.nn.Module):
    """Keeps a name known where Whisper is not installed, and says so when built."""

    def __init__(self, *args: object, **kwargs: object) -> None:
        require("whisper", _WHISPER)


def register_asr() -> None:
    """Let ESPnet's ASR task know our classes by name; safe to call again."""
    prepare_espnet()
    bound_beams()
    frontend_choices.classes["stored_features"] = StoredFeaturesFrontend
    frontend_choices.classes["lamer_upstream"] = LamerUpstreamFrontend
    encoder = decoder = model = _WithoutWhisper
    if find_spec("whisper"):
        from espnet2_lamer.whisper.decoder import WhisperLoraDecoder as decoder
        from espnet2_lamer.whisper.encoder import WhisperLoraEncoder as encoder
        from espnet2_lamer.whisper.model import WhisperLoraModel as model
        from espnet2_lamer.whisper.text import replace_espnet_tokenizers

        replace_espnet_tokenizers()
    encoder_choices.classes[_WHISPER] = encoder
    decoder_choices.classes[_WHISPER] = decoder
    model_choices.classes[_WHISPER] = model
    model_choices.classes[LID_ROUTED] = LidRoutedASRModel


def check_s3prl_frontend(conf: Any) -> None:
    """Refuse files that ESPnet's own ``frontend: s3prl``, also fused, would read.

    Those that the user did not trust raise ``RecipeError``.
    """
    if isinstance(conf, Mapping):
        # S3PRL takes a file from either of them.
        file = conf.get("path_or_url") or conf.get("extra_conf")
        if file:
            split_s3prl(f"{S3PRL_PREFIX}{conf.get('upstream')}:{file}")
        conf = conf.values()
    elif not isinstance(conf, list):
        return
    for part in conf:
        check_s3prl_frontend(part)


def _check_checkpoint(path: Path) -> None:
    """Refuse what ESPnet's trainer could not resume from."""
    state = check_weights(path)
    parts = ("model", "reporter", "optimizers", "schedulers")
    if not (isinstance(state, dict) and state.keys() >= set(parts)):
        raise RecipeError(
            f"{path}: expected a checkpoint of ESPnet's trainer, with "
            f"{', '.join(parts)}; move it away to train from the start"
        )


class LamerASRTask(ASRTask):
    """:class:`espnet2.tasks.asr.ASRTask` plus ``amp_dtype``.

    ESPnet's ``use_amp`` does nothing on a CPU. ``amp_dtype: bf16`` runs the encoder
    under autocast on any device, and with Whisper the decoder; ``auto`` does so where
    the device computes bf16 itself. Checkpoints and configs are ASRTask's; files appear
    whole, see :class:`CheckedTrainer`.
    """

    trainer = CheckedTrainer

    @classmethod
    def add_task_arguments(cls, parser: argparse.ArgumentParser) -> None:
        """Add ESPnet's ASR options and ``--amp_dtype``."""
        register_asr()
        super().add_task_arguments(parser)
        parser.add_argument(
            "--amp_dtype",
            default=AUTO,
            choices=[AUTO, "none", "bf16"],
            help="autocast dtype of the encoder (and Whisper's decoder); auto: bf16 on "
            "GPUs and CPUs that compute it themselves, else none, which is float32",
        )
        parser.add_argument(
            "--upstream_optim_conf",
            action=NestedDictAction,
            default={},
            help="what experts and backbone of a tuned upstream (frontend_conf: tune) "
            "have other than optim_conf, such as experts.lr=3e-4",
        )
        parser.add_argument(
            "--text_conf",
            action=NestedDictAction,
            default={},
            help="what is done to transcripts before they are learnt: punctuation "
            "(remove, keep) and case (upper, lower, keep); the recipe does it, and "
            "this records it",
        )

    @classmethod
    def main(
        cls, args: argparse.Namespace | None = None, cmd: Sequence[str] | None = None
    ) -> None:
        """Check the files that training starts from, settle the precision, train.

        Files that hold more than weights, or resuming in another precision, raise
        ``RecipeError``.
        """
        if args is None:
            args = cls.get_parser().parse_args(cmd)
        check_packages(args)
        check_init_param(args)
        check_s3prl_frontend(args.frontend_conf)
        recorded = None if args.print_config else settle_amp_dtype(args)
        resumed = Path(args.output_dir or "", LATEST)
        if args.output_dir and args.resume and resumed.is_file():
            _check_checkpoint(resumed)
            if recorded not in (None, args.amp_dtype):
                raise RecipeError(
                    f"amp_dtype: found {args.amp_dtype}, expected {recorded}, in which "
                    f"{args.output_dir} began; train into another directory "
                    "(--output_dir), or from the start (--resume false)"
                )
        # For spawned workers; no key of a config, which may be another's.
        args.trust_s3prl_files = s3prl_files_trusted()
        with one_training(args):
            super().main(args=args)

    @classmethod
    def main_worker(cls, args: argparse.Namespace) -> None:
        """Run training; also the entry point of spawned DDP workers."""
        register_asr()
        if args.ngpu == 0:
            keep_freed_memory()
        with trusting_s3prl_files(vars(args).pop(OPTION, False)):
            try:
                super().main_worker(args)
            except pickle.UnpicklingError as error:
                raise RecipeError(
                    f"{args.output_dir}: one of its .pth files is not loadable as "
                    f"plain weights ({short_reason(error)})"
                ) from error

    @classmethod
    def optional_data_names(
        cls, train: bool = True, inference: bool = False
    ) -> tuple[str, ...]:
        """Return ESPnet's names and ``lang``: Whisper's experts and identifiers."""
        return (*super().optional_data_names(train, inference), "lang")

    @classmethod
    def build_optimizers(
        cls, args: argparse.Namespace, model: torch.nn.Module
    ) -> list[torch.optim.Optimizer]:
        """Build ESPnet's optimizer; an upstream that trains has a group of its own."""
        if getattr(model.frontend, "tuned", None):
            return [build_tuned_optimizer(args, model)]
        return super().build_optimizers(args, model)

    @classmethod
    def build_model(cls, args: argparse.Namespace) -> ESPnetASRModel:
        """Build ESPnet's model, with its encoder under autocast if asked."""
        tokens = args.token_list
        model = super().build_model(args)
        bf16 = settled_amp_dtype(args) == "bf16"
        if args.model == _WHISPER:
            # Not ESPnet's copy: 51865 lines of YAML take every process seconds.
            args.token_list = tokens
            model.amp_dtype = torch.bfloat16 if bf16 else None
        elif bf16:
            # The 2-D subsampling dominates a head's cost; oneDNN runs it in bf16
            # 1.5 times faster when channels come last.
            model.encoder.to(memory_format=torch.channels_last)
            if getattr(model.frontend, "tuned", None):
                model.frontend.tuned_dtype = torch.bfloat16
            model.encoder.forward = _with_autocast(model.encoder.forward)
        return model


def _with_autocast(forward):
    # The encoder only: in bf16, CTC's log posteriors would keep three digits. Entered
    # per forward, because autocast keeps cast copies of the weights until it is left.
    @functools.wraps(forward)
    def wrapped(feats, *args, **kwargs):
        with torch.autocast(feats.device.type, torch.bfloat16):
            encoded, *rest = forward(feats, *args, **kwargs)
        return encoded.float(), *rest

    return wrapped


def load_whisper_model(
    config: str | Path, checkpoint: str | Path | None = None, device: str = "cpu"
) -> "WhisperLoraModel":
    """Rebuild the model of a Whisper experiment, or of a packed one, in eval mode.

    Without one of its epoch files, the ``checkpoint``, it is as it starts. It computes
    in float32 where the device only emulates the bf16 of the training.

    Raises:
        RecipeError: The config is of another model, or does not fit the checkpoint.
    """
    register_asr()
    if checkpoint is not None:
        check_weights(checkpoint)
    with clear_errors(config):
        model, _ = LamerASRTask.build_model_from_file(config, checkpoint, device)
    if not isinstance(model, model_choices.classes[_WHISPER]):
        raise RecipeError(f"{config}: model: expected {_WHISPER}")
    if model.amp_dtype is not None:
        native, reason = native_bf16(device)
        if not native:
            logging.info("%s: used in float32, not bf16: %s", config, reason)
            model.amp_dtype = None
    return model.eval()
