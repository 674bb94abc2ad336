"""The demo's page in a browser, without a network: a file, a recording, no errors."""

import os
from pathlib import Path

import pytest

from tests.browser import CHROMIUM, browser

pytestmark = pytest.mark.skipif(
    CHROMIUM is None, reason="needs chromium: apt-get install -y chromium"
)
ANSWERED = "!document.getElementById('result').hidden"
#: Whether a canvas has pixels of several colours.
COLOURS = """(id) => {
  const canvas = document.getElementById(id);
  const data = canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height);
  return new Set(new Uint32Array(data.data.buffer)).size;
}"""


@pytest.fixture
def audio(tmp_path, encoded):
    """The recording as a file."""
    path = tmp_path / "speech.wav"
    path.write_bytes(encoded["WAV"])
    return path


def test_a_file_gets_text_language_and_coloured_strips(server, tmp_path, audio):
    with browser(tmp_path / "profile") as page:
        page.open(server.url)
        page.wait("document.getElementById('name').textContent.includes('asr_tiny')")
        page.choose_file("#file", audio)
        page.wait(ANSWERED)
        text = page.value("document.getElementById('answers').innerText")
        assert "text, asr_tiny" in text and "language, lid_tiny" in text
        for canvas in ("wave", "overview", "gates"):
            assert page.value(f"({COLOURS})('{canvas}')") > 2
        assert page.value("document.getElementById('layer').options.length") == 2
        # The upper half of the overview is layer 1.
        page.value(
            "{const c = document.getElementById('overview'); c.dispatchEvent(new "
            "MouseEvent('click', {bubbles: true, clientX: c.getBoundingClientRect().x "
            "+ 50, clientY: c.getBoundingClientRect().y + 3}))}"
        )
        chosen = page.value("document.getElementById('layer').value")
        assert chosen == "layer 1, 2 experts"
        picture = Path(os.environ.get("LAMER_SCREENSHOTS", tmp_path)) / "demo.png"
        page.screenshot(picture)
        assert picture.stat().st_size > 5000
        assert page.errors == []


def test_what_the_microphone_records_arrives_as_audio(server, tmp_path, audio):
    options = (
        "--use-fake-ui-for-media-stream",
        "--use-fake-device-for-media-stream",
        f"--use-file-for-fake-audio-capture={audio}",
    )
    with browser(tmp_path / "profile", *options) as page:
        page.open(server.url)
        page.wait("!document.getElementById('record').disabled")
        page.value("document.getElementById('record').click()")
        page.wait("recorder && recorder.state === 'recording'")
        page.value("new Promise((done) => setTimeout(done, 1500))")
        page.value("document.getElementById('record').click()")
        page.wait(f"{ANSWERED} || document.getElementById('status').className")
        assert page.value("document.getElementById('status').textContent") == ""
        assert page.value("shown.seconds") > 0.5
        assert page.value("shown.envelope.flat().some((x) => Math.abs(x) > 0.01)")
        assert page.errors == []


def test_what_only_the_browser_reads_is_converted_in_the_page(server, tmp_path, audio):
    script = """(async () => {
      const context = new AudioContext();
      const source = context.createOscillator();
      const sink = context.createMediaStreamDestination();
      source.connect(sink);
      source.start();
      const parts = [];
      const recorder = new MediaRecorder(sink.stream);
      recorder.ondataavailable = (event) => parts.push(event.data);
      recorder.start();
      await new Promise((done) => setTimeout(done, 1000));
      await new Promise((done) => { recorder.onstop = done; recorder.stop(); });
      await listen(new Blob(parts, { type: recorder.mimeType }));
      return parts[0].type;
    })()"""
    with browser(
        tmp_path / "profile", "--autoplay-policy=no-user-gesture-required"
    ) as page:
        page.open(server.url)
        assert "webm" in page.value(script)
        assert page.value("document.getElementById('status').textContent") == ""
        assert page.value(ANSWERED) and page.errors == []


def test_a_file_that_is_no_audio_is_refused_in_words(server, tmp_path):
    text = tmp_path / "notes.txt"
    text.write_text("no speech")
    with browser(tmp_path / "profile") as page:
        page.open(server.url)
        page.choose_file("#file", text)
        page.wait("document.getElementById('status').className === 'wrong'")
        said = page.value("document.getElementById('status').textContent")
        assert "reads this as audio" in said and page.errors == []
