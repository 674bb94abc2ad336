"""The self-contained form of a continual-pretraining experiment."""

from pathlib import Path

import yaml

from espnet2_lamer.convert.espnet_experiment import read_config
from espnet2_lamer.convert.state import read_state
from espnet2_lamer.fileio.atomic import write_text
from espnet2_lamer.fileio.checksum import checked_file
from espnet2_lamer.tasks.pretrained import restore_pretraining_model


def write_full_model(
    config: str | Path, model_file: str | Path, output_dir: str | Path
) -> tuple[Path, Path]:
    """Write config and weights that need no base checkpoint.

    An experiment's epoch files hold what was trained and the base's hash only. Here
    the base's tensors join them, and ``encoder_conf`` describes the architecture
    instead of naming the base.

    Args:
        config: ``config.yaml`` of the experiment.
        model_file: One of its epoch files.
        output_dir: Receives ``config.yaml`` and ``model.pth``.

    Returns:
        The two paths.

    Raises:
        RecipeError: The base is not the one that the experiment was trained on.
    """
    import torch

    settings = read_config(Path(config).parent)
    state = read_state(Path(model_file))
    model = restore_pretraining_model(settings, state, None, Path(config))
    model.encoder.write_base = True
    settings["encoder_conf"] = {
        **settings["encoder_conf"],
        **model.encoder.architecture,
        "base": None,
    }
    output_dir = Path(output_dir)
    paths = output_dir / "config.yaml", output_dir / "model.pth"
    write_text(paths[0], yaml.safe_dump(settings, sort_keys=False, allow_unicode=True))
    with checked_file(paths[1]) as handle:
        # Through a handle: given a path, torch writes its name into the file.
        torch.save(model.state_dict(), handle)
    return paths
