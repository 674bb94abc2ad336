"""Frontend with a frozen upstream inside: waveform in, hidden states out."""

from pathlib import Path
from typing import Any

import torch
from espnet2.asr.frontend.abs_frontend import AbsFrontend
from torch import Tensor

from espnet2_lamer.asr.frontend.states import LayerSum, selected_states, upstream_states
from espnet2_lamer.constants import SAMPLE_RATE
from espnet2_lamer.errors import RecipeError
from espnet2_lamer.layers.config import check_values


class LamerUpstreamFrontend(AbsFrontend):
    """A frozen Lamer or HuBERT model as the input of an ESPnet model.

    The upstream never trains: its parameters need no gradient, it runs without autograd
    and in fp32, and it stays in eval mode, so no dropout reaches the features.

    Args:
        upstream: What ``espnet2_lamer.load_model`` accepts. For training; checkpoints
            then hold the rest of the ESPnet model alone.
        upstream_conf: ``Upstream.architecture()`` of a model whose weights come with
            the checkpoint of the whole ESPnet model. For packed models: no file but
            the checkpoint is needed.
        layer: One state index, or ``"all"`` for the learned weighted sum.
        fs: Sampling rate of the waveforms; upstreams know 16 kHz only.

    Raises:
        RecipeError: Not exactly one of ``upstream`` and ``upstream_conf`` is given,
            the rate is not 16 kHz, or the upstream has no such layer.
    """

    def __init__(
        self,
        upstream: str | Path | None = None,
        upstream_conf: dict[str, Any] | None = None,
        layer: int | str = "all",
        fs: int | str = SAMPLE_RATE,
    ) -> None:
        super().__init__()
        right = str(fs) in (str(SAMPLE_RATE), "16k")
        expected = f"{SAMPLE_RATE}; resample the audio"
        check_values("frontend_conf.", ("fs", fs, right, expected))
        if (upstream is None) == (upstream_conf is None):
            raise RecipeError(
                "frontend_conf: give exactly one of upstream (a path) and "
                "upstream_conf (an architecture whose weights are in the checkpoint)"
            )
        from espnet2_lamer.upstream import build_upstream, load_model

        self.from_file = upstream is not None
        # A head has the same first weights whether its features are stored or not.
        with torch.random.fork_rng(devices=[]):
            if self.from_file:
                self.upstream = load_model(upstream)
            else:
                self.upstream = build_upstream(upstream_conf)
        self.register_state_dict_post_hook(_drop_upstream)
        self.register_load_state_dict_pre_hook(_fill_upstream)
        self.layer = layer
        num_states = len(selected_states(self.upstream.num_layers, layer))
        self.layer_sum = LayerSum(num_states, self.upstream.dim)

    def output_size(self) -> int:
        """Return D."""
        return self.layer_sum.dim

    def forward(self, input: Tensor, input_lengths: Tensor) -> tuple[Tensor, Tensor]:
        """Map 16 kHz waveforms ``[B, n]``, samples ``[B]`` to ``[B, T, D]``, ``[B]``.

        ``T = ceil(n / 320)``, the frames that S3PRL returns.
        """
        with torch.autocast(input.device.type, enabled=False):
            states, lengths = upstream_states(
                self.upstream, input.float(), input_lengths, self.layer
            )
        return self.layer_sum(states), lengths


def _drop_upstream(
    module: LamerUpstreamFrontend, state: dict[str, Tensor], prefix: str, *_: Any
) -> None:
    """Keep what lies in a file already, up to a gigabyte, out of every checkpoint."""
    if module.from_file:
        for key in module.upstream.state_dict(prefix=f"{prefix}upstream."):
            state.pop(key, None)


def _fill_upstream(
    module: LamerUpstreamFrontend, state: dict[str, Tensor], prefix: str, *_: Any
) -> None:
    weights = module.upstream.state_dict(prefix=f"{prefix}upstream.")
    missing = {key: value for key, value in weights.items() if key not in state}
    if module.from_file:
        state.update(missing)
    elif missing:
        # ESPnet loads with strict=False, which would leave a random upstream in place.
        raise RecipeError(
            f"checkpoint: {len(missing)} weights of the upstream are missing, first "
            f"{next(iter(missing))}; the checkpoint belongs to another upstream_conf"
        )
