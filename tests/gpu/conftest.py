"""What tests run on here: a pretended GPU, and in ``make test-gpu`` a real one."""

import contextlib

import pytest
import torch

from tests.pretended_gpu import pretended_gpu


@contextlib.contextmanager
def _real_gpu():
    """A real one, whose kernels add in one order as far as they can."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        torch.use_deterministic_algorithms(True, warn_only=True)
        try:
            yield None
        finally:
            torch.use_deterministic_algorithms(False)
            torch.cuda.empty_cache()


@pytest.fixture(params=["pretended", pytest.param("real", marks=pytest.mark.gpu)])
def gpu(request):
    """Return the context in which "cuda" names a device.

    It gives the :class:`~tests.pretended_gpu.PretendedGpu`, or ``None`` for a real one.
    """
    return pretended_gpu if request.param == "pretended" else _real_gpu


@pytest.fixture(scope="session")
def corpus(tmp_path_factory):
    """Eight utterances of noise with random units; nobody may change it."""
    from tests.train.small_training import make_corpus

    directory = tmp_path_factory.mktemp("gpu") / "corpus"
    make_corpus(directory, 8)
    return directory


@pytest.fixture(scope="session")
def hubert_dirs(tmp_path_factory):
    """Hugging Face directories of tiny HuBERTs by the kind of their extractor."""
    from espnet2_lamer.convert.architecture import build_hubert
    from espnet2_lamer.convert.huggingface import save_huggingface
    from tests.tiny_hubert import ARCHITECTURE

    found = {}
    for mode in ("layer_norm", "group_norm"):
        torch.manual_seed(0)
        model = build_hubert(ARCHITECTURE | {"extractor_mode": mode})
        model.mask_embedding = torch.rand(16)
        found[mode] = tmp_path_factory.mktemp("gpu") / mode
        save_huggingface(model, found[mode])
    return found
