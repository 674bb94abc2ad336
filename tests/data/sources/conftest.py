"""What the user has fetched before is not looked at, nor added to."""

import pytest


@pytest.fixture(autouse=True)
def no_cache_of_the_user(tmp_path, monkeypatch):
    from datasets import config

    monkeypatch.setattr(config, "HF_DATASETS_CACHE", str(tmp_path / "hf"))
