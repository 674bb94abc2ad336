"""One trained head for all tests of this folder: training it is the slow part."""

import pytest
import torch
import yaml

from espnet2_lamer.asr.upstream import Upstream
from tests.data.conftest import make_set  # noqa: F401 (a fixture of this folder, too)
from tests.evaluation.tiny_head import CONFIG, GREEDY, TINY, run_training, write_set


@pytest.fixture(scope="package")
def upstream():
    torch.manual_seed(0)
    return Upstream.from_architecture(TINY)


@pytest.fixture(scope="package")
def trained(tmp_path_factory, upstream):
    root = tmp_path_factory.mktemp("head")
    write_set(root / "train", "train", 9, 1)
    write_set(root / "dev", "dev", 4, 2)
    (root / "head.yaml").write_text(yaml.safe_dump(CONFIG))
    (root / "decode.yaml").write_text(yaml.safe_dump(GREEDY))
    run_training(root, upstream)
    return root
