"""A Lamer-SSL model as an S3PRL upstream; needs the package ``espnet2_lamer``."""

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from espnet2_lamer import load_model
from espnet2_lamer.asr.frontend.states import stretch_to_grid
from espnet2_lamer.constants import STRIDE


class UpstreamExpert(nn.Module):
    """All L + 1 hidden states, a frame every 320 samples.

    State 0 is the transformer's input, k the output of layer k, L after the final
    LayerNorm unless the model says otherwise. Every utterance has ``ceil(samples /
    320)`` frames, its last one repeated as S3PRL does for a whole batch, so that
    features do not depend on what an utterance was batched with; frames after those are
    zero. The model stays frozen and in eval mode, whatever ``train()`` says. An
    utterance below 400 samples, which has no frame, raises an error that names it.

    ``ckpt`` is ``model.pth`` with ``config.yaml`` beside it, the directory of both, or
    a model-zoo zip; ``base`` tells where the frozen base is, for a training's own epoch
    files. What else S3PRL passes is not used.
    """

    def __init__(
        self,
        ckpt: str,
        model_config: str | None = None,
        base: str | None = None,
        **kwargs,
    ) -> None:
        super().__init__()
        self.model = load_model(ckpt, base=base)
        # Of the next batch, where S3PRL fills it up.
        self.samples: list[int] | None = None

    def get_downsample_rates(self, key: str | None = None) -> int:
        """Samples per frame."""
        return STRIDE

    def forward(self, wavs: list[Tensor]) -> dict[str, list[Tensor]]:
        """Map waveforms ``[n]`` to ``hidden_states``: L + 1 tensors ``[B, T, D]``."""
        device = wavs[0].device
        if self.samples is not None:
            wavs = [wav[:n] for wav, n in zip(wavs, self.samples, strict=True)]
            self.samples = None
        lengths = torch.tensor([len(wav) for wav in wavs], device=device)
        padded = pad_sequence([wav.float() for wav in wavs], batch_first=True)
        states, frames = self.model.extract_features(padded, lengths)
        return {
            "hidden_states": [
                stretch_to_grid(state, frames, lengths)[0] for state in states
            ]
        }
