"""A checkpoint for S3PRL, and the upstream to drop into an S3PRL checkout."""

import shutil
import tempfile
from pathlib import Path

from espnet2_lamer.convert.espnet_experiment import CONFIG
from espnet2_lamer.convert.packed import TRAINING_KEYS, unpack_model
from espnet2_lamer.export.huggingface import refuse_other_content
from espnet2_lamer.export.zoo import write_full_model
from espnet2_lamer.fileio.atomic import atomic_dir
from espnet2_lamer.s3prl_hub import lamer_ssl
from espnet2_lamer.upstream import load_model

# Copied as it is.
UPSTREAM = Path(lamer_ssl.__file__).parent
README = """\
# {name} for S3PRL

`pip install` the package `espnet2_lamer`, then either call
`espnet2_lamer.register(s3prl=True)` before S3PRL is used, or put the upstream into an
S3PRL checkout:

```bash
cp -r upstream/lamer_ssl S3PRL/s3prl/upstream/
echo 'from s3prl.upstream.lamer_ssl.hubconf import *' >> S3PRL/s3prl/hub.py
cd S3PRL/s3prl && python run_downstream.py -u lamer_ssl_local -k {name}/model.pth ...
```

L + 1 hidden states, a frame every 320 samples. `espnet_hubert_custom` of S3PRL reads
`model.pth` as well, after `import espnet2_lamer; espnet2_lamer.register()`; it has no
state 0, so its index k - 1 is state k, and its last state has no final LayerNorm.
"""


def write_s3prl(
    source: str | Path,
    directory: str | Path,
    epoch_file: str | None = None,
    base: str | Path | None = None,
) -> None:
    """Write ``config.yaml``, ``model.pth`` (no base needed) and ``upstream/lamer_ssl``.

    Args:
        source: Experiment of a continual pretraining, or its packed zip.
        directory: Appears whole, and replaces an older export.
        epoch_file: Weights of the experiment; default is its best model.
        base: Overrides ``encoder_conf.base``.

    Raises:
        RecipeError: ``source`` or what ``directory`` holds is something else.
    """
    source, directory = Path(source), Path(directory)
    refuse_other_content(directory, "upstream")
    with tempfile.TemporaryDirectory() as scratch, atomic_dir(directory) as temporary:
        if source.is_file() and source.suffix == ".zip":
            load_model(source)  # refuses what is not whole, or no pretraining model
            members = unpack_model(source, scratch)
            shutil.copyfile(members["ssl_train_config"], temporary / CONFIG)
            shutil.copyfile(members["ssl_model_file"], temporary / "model.pth")
        else:
            write_full_model(
                source,
                temporary,
                epoch_file=epoch_file,
                base=base,
                leave_out=TRAINING_KEYS,
            )
        target = temporary / "upstream" / UPSTREAM.name
        target.mkdir(parents=True)
        for path in sorted(UPSTREAM.glob("*.py")):
            shutil.copyfile(path, target / path.name)
        readme = README.format(name=directory.absolute().name)
        (temporary / "README.md").write_text(readme, encoding="utf-8")
