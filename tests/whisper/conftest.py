"""One small Whisper file for all tests of this folder."""

import pytest


@pytest.fixture(scope="session")
def whisper_file(tmp_path_factory):
    from tests.whisper.small_whisper import save_whisper

    return save_whisper(tmp_path_factory.mktemp("whisper") / "small.pt")
