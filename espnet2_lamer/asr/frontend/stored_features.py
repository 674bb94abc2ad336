"""Frontend for upstream features that were computed once and read from disk."""

from espnet2.asr.frontend.abs_frontend import AbsFrontend
from torch import Tensor

from espnet2_lamer.asr.frontend.states import LayerSum


class StoredFeaturesFrontend(AbsFrontend):
    """Pass stored states on, summing them with learned weights if there are several.

    Training a head on it equals training it on ``lamer_upstream`` with the upstream
    that wrote the store, without running that upstream again.

    Args:
        dim: Width D of one state.
        num_states: Stored states S per frame: 1 for a single layer.
        fs: Accepted because ESPnet's recipes pass it; the features have no rate.
    """

    def __init__(self, dim: int, num_states: int = 1, fs: int | str = 16000) -> None:
        super().__init__()
        self.layer_sum = LayerSum(num_states, dim)

    def output_size(self) -> int:
        """Return D."""
        return self.layer_sum.dim

    def forward(self, input: Tensor, input_lengths: Tensor) -> tuple[Tensor, Tensor]:
        """Map stored states ``[B, T, S * D]``, lengths ``[B]`` to ``[B, T, D]``."""
        return self.layer_sum(input), input_lengths
