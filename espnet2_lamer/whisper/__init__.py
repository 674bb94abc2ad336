"""Whisper with LoRA language experts, and what trains, distils and decodes them."""

from espnet2_lamer.compat import before_espnet
from espnet2_lamer.errors import require

require("whisper", "Whisper")
before_espnet()
