"""Options of the Whisper recipe for tests."""

from espnet2_lamer.recipe.whisper.options import SYSTEMS, WhisperOptions
from espnet2_lamer.recipe.whisper.systems import CONFIG_OPTIONS


def make_options(root, **changes):
    """Options as the mini preset's, with everything below ``root``."""
    values = {
        "stage": 0,
        "stop_stage": 11,
        "skip_stages": [],
        "ngpu": 0,
        "nj": 1,
        "seed": 0,
        "datadir": root / "data",
        "dumpdir": root / "dump",
        "expdir": root / "exp",
        "preset": "mini",
        "corpus": "mini",
        "manifest": "",
        "exclude_sources": [],
        "max_missing": 1.0,
        "langs": ["eng", "cmn", "yue"],
        "train_minutes": 1.0,
        "dev_utts": 2,
        "test_utts": 2,
        "min_duration": 1.0,
        "max_duration": 12.0,
        "max_bad_audio": 1.0,
        "segment": "none",
        "segments": "",
        "whisper": "base",
        "prompts": {"eng": "en", "cmn": "zh", "yue": "zh"},
        "systems": list(SYSTEMS),
        "shared_layers": [],
        "student_rank": [],
        **{name: root / f"{name}.yaml" for name in CONFIG_OPTIONS},
        "decode_config": root / "decode.yaml",
        "pack": ["mole", "kd_layerwise"],
        "hf_repo": "",
        "dry_run": False,
        "print_commands": False,
        "python": "",
    }
    return WhisperOptions(**values | changes)
