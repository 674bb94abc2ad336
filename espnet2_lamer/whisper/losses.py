"""Training losses of an utterance's text, supervised and distilled."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from espnet2_lamer.errors import RecipeError
from espnet2_lamer.whisper.distillation import cosine_loss, jensen_shannon
from espnet2_lamer.whisper.teacher_cache import TeacherOutputs

DISTILLATIONS = ("layerwise", "output", "none")


def text_targets(
    text: Tensor, lengths: Tensor, eos: int, ignore: int
) -> tuple[Tensor, Tensor]:
    """Make the decoder's input and what it is to predict.

    Args:
        text: Tokens ``[B, U]``, padding anything.
        lengths: Their numbers ``[B]``.
        eos: The end's id.
        ignore: Marks padding in the targets.

    Returns:
        Input ``[B, U]``, padded with ``eos``, and targets ``[B, U + 1]``.
    """
    positions = torch.arange(text.shape[1] + 1, device=text.device)
    tokens = text.masked_fill(positions[:-1] >= lengths[:, None], eos)
    targets = F.pad(tokens, (0, 1), value=eos)
    return tokens, targets.masked_fill(positions > lengths[:, None], ignore)


def asr_loss(
    logits: Tensor, targets: Tensor, smoothing: float, ignore: int
) -> tuple[Tensor, dict[str, Tensor]]:
    """Return the mean cross-entropy of a token, and it with accuracy as statistics.

    Args:
        logits: ``[B, U, V]``.
        targets: ``[B, U]``, ``ignore`` in padding.
        smoothing: Label smoothing.
        ignore: See ``targets``.
    """
    loss = F.cross_entropy(
        logits.flatten(0, 1),
        targets.flatten(),
        ignore_index=ignore,
        label_smoothing=smoothing,
    )
    real = targets != ignore
    accuracy = (logits.argmax(-1) == targets)[real].float().mean()
    return loss, {"loss_asr": loss.detach(), "acc": accuracy}


@dataclass
class StudentLoss:
    """ASR loss plus what pulls the student to its teacher.

    The paper gives no weights. The defaults: 1 for ASR and for the cosine, 2 for the
    Jensen-Shannon divergence, which is its weight beside cross-entropy in
    DistilWhisper (arXiv 2311.01070).

    Args:
        distillation: ``"layerwise"``, ``"output"`` or ``"none"``.
        asr_weight: Of the ASR loss.
        hidden_weight: Of the cosine loss on hidden states.
        logit_weight: Of the divergence.
        temperature: Of the divergence.

    Raises:
        RecipeError: An unknown kind of distillation.
    """

    distillation: str = "layerwise"
    asr_weight: float = 1.0
    hidden_weight: float = 1.0
    logit_weight: float = 2.0
    temperature: float = 1.0

    def __post_init__(self) -> None:
        """Check the kind."""
        if self.distillation not in DISTILLATIONS:
            raise RecipeError(
                f"model_conf.distillation: found {self.distillation!r}, expected one "
                f"of {list(DISTILLATIONS)}"
            )

    @property
    def layerwise(self) -> bool:
        """Whether hidden states count."""
        return self.distillation == "layerwise"

    def __call__(
        self,
        asr: Tensor,
        encoder_states: Sequence[Tensor],
        decoder_states: Sequence[Tensor],
        logits: Tensor,
        teacher: TeacherOutputs,
        teacher_logits: Tensor,
        frames: Tensor,
        positions: Tensor,
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Add the losses up.

        Args:
            asr: The ASR loss.
            encoder_states: The student's, ``[B, T, D]`` a layer.
            decoder_states: The student's, ``[B, U, D]`` a layer.
            logits: The student's ``[B, U, V]``.
            teacher: The teacher's states.
            teacher_logits: ``[B, U, V]``.
            frames: Real frames ``[B, T]``.
            positions: Real positions ``[B, U]``.

        Returns:
            Loss and statistics. The cosine loss is the mean over all layers of
            encoder and decoder.
        """
        divergence = jensen_shannon(logits, teacher_logits, positions, self.temperature)
        stats = {"loss_logit": divergence.detach()}
        loss = self.asr_weight * asr + self.logit_weight * divergence
        if self.layerwise:
            encoder = cosine_loss(encoder_states, teacher.encoder, frames)
            decoder = cosine_loss(decoder_states, teacher.decoder, positions)
            layers = len(encoder_states), len(decoder_states)
            hidden = (layers[0] * encoder + layers[1] * decoder) / sum(layers)
            stats["loss_hidden"] = hidden.detach()
            loss = loss + self.hidden_weight * hidden
        return loss, stats
