"""What a package decodes, compared with what its model decoded before packing."""

import logging
import tempfile
from pathlib import Path

from espnet2_lamer.convert.packed import unpack_model
from espnet2_lamer.errors import RecipeError
from espnet2_lamer.evaluation.feature_store import count_samples
from espnet2_lamer.evaluation.head_decoding import decode_utterances
from espnet2_lamer.evaluation.runs import Run
from espnet2_lamer.fileio.datadir import read_table, write_table
from espnet2_lamer.fileio.foreign import read_yaml


def check_package(
    run: Run,
    package: Path,
    expdir: Path,
    raw_dir: Path,
    decode_config: Path,
    device: str = "cpu",
    utterances: int | None = 4,
) -> int:
    """Decode test utterances with the finished head and with its package.

    Args:
        run: The head.
        package: Its zip.
        expdir: Parent of the experiment directories.
        raw_dir: Parent of the data directories.
        decode_config: ESPnet decoding config.
        device: Where the models run.
        utterances: First so many of each test set; ``None``: all.

    Returns:
        How many utterances were compared.

    Raises:
        RecipeError: A text differs; the package is removed, so that nobody publishes
            it.
    """
    options = read_yaml(decode_config)
    audio: dict[str, str] = {}
    for name in dict.fromkeys(n for sets in run.tests.values() for n in sets):
        table = read_table(raw_dir / name / "wav.scp", "stage 9")
        audio |= dict(list(table.items())[:utterances])
    with tempfile.TemporaryDirectory() as scratch:
        write_table(Path(scratch) / "wav.scp", audio)
        samples = count_samples(Path(scratch) / "wav.scp")
        unpacked = Path(unpack_model(package, scratch)["asr_train_config"]).parent
        before, after = (
            decode_utterances(directory, samples, options, device)
            for directory in (run.directory(expdir) / "final", unpacked)
        )
    for utt, (text, *_) in before.items():
        if after[utt][0] != text:
            package.unlink()
            raise RecipeError(
                f"{package}: decodes {utt} as {after[utt][0]!r}, but the model before "
                f"packing as {text!r}; run stage 13 again"
            )
    logging.info("%s: %d utterances decode as before", package, len(before))
    return len(before)
