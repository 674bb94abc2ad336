"""The options of asr1/run.sh, as one value that every stage receives."""

from dataclasses import dataclass
from pathlib import Path

from espnet2_lamer.recipe.options import CommonOptions

LAST_STAGE = 11
#: What can be trained and compared, in the order of the tables.
SYSTEMS = (
    *("frozen", "multilingual", "full", "experts", "mole"),
    *("kd_none", "kd_output", "kd_layerwise"),
)
SPLITS = ("train", "dev", "test")


@dataclass
class WhisperOptions(CommonOptions):
    """Options of the recipe; names and meaning as ``run.sh --help`` shows them."""

    langs: list[str]
    train_minutes: float
    dev_utts: int
    test_utts: int
    whisper: str
    prompts: dict[str, str]
    systems: list[str]
    shared_layers: list[int]
    student_rank: list[int]
    expert_config: Path
    multilingual_config: Path
    full_config: Path
    mole_config: Path
    kd_config: Path
    decode_config: Path
    pack: list[str]

    @property
    def weights(self) -> Path:
        """The file in which stage 0 says which Whisper is used."""
        return self.expdir / "weights.json"

    @property
    def packed(self) -> Path:
        """Where the packages go."""
        return self.expdir / "packed"

    def set_dir(self, lang: str, split: str) -> Path:
        """Return the formatted set of a language that training and tests read."""
        return self.raw / f"whisper_{lang}_{split}"
