"""The page in a real browser: what is on the first screen, and that nothing is loaded.

Screenshots stay in the folder ``LAMER_SCREENSHOTS`` where that is set, else in that
of pytest.
"""

import json
import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from espnet2_lamer.report.experiment import report_page
from tests.report.small_run import write_run

BROWSER = next(filter(None, map(shutil.which, ("chromium", "google-chrome"))), None)
pytestmark = pytest.mark.skipif(
    BROWSER is None, reason="no chromium or google-chrome on PATH"
)
#: Appended to a copy of the page without its policy; answers in the title.
MEASURE = """<script>addEventListener("load", () => {
  const box = (q) => [...document.querySelectorAll(q)].map((e) => {
    const r = e.getBoundingClientRect(); return [r.top, r.bottom, r.right]; });
  const seen = {
    lines: box(".lines li"), panels: box(".panel"), width: innerWidth,
    body: document.documentElement.scrollWidth,
    images: [...document.images].map((i) => [i.naturalWidth, i.alt]),
    resources: performance.getEntriesByType("resource")
      .map((e) => e.name.slice(0, 40)).filter((n) => !n.startsWith("data:")),
    paper: getComputedStyle(document.body).backgroundColor,
    ink: getComputedStyle(document.body).color };
  const audio = document.querySelector("audio");
  const tell = () => { document.title = JSON.stringify(seen); };
  if (!audio) return tell();
  audio.preload = "auto"; audio.load();
  audio.onloadedmetadata = () => { seen.seconds = audio.duration; tell(); };
  audio.onerror = () => { seen.seconds = audio.error.message; tell(); };
});</script>"""


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    exp = tmp_path_factory.mktemp("run") / "exp"
    path = exp / "report.html"
    path.write_text(report_page(exp, write_run(exp)), encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def shots(tmp_path_factory):
    place = os.environ.get("LAMER_SCREENSHOTS")
    folder = Path(place) if place else tmp_path_factory.mktemp("screenshots")
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def browse(page, *options, width=1280, height=800):
    """Run the browser without a network; returns its output and what it logged."""
    done = subprocess.run(
        [
            BROWSER,
            *("--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars"),
            # Nobody listens there: whatever is asked for fails, and says so.
            *("--proxy-server=127.0.0.1:9", "--enable-logging=stderr"),
            *(f"--window-size={width},{height}", "--virtual-time-budget=4000"),
            f"--user-data-dir={page.parent / 'profile'}",
            *options,
            page.as_uri(),
        ],
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    return done.stdout, done.stderr


def measured(page, width, height, *options):
    """What a script finds in a copy of the page at some size of the window."""
    copy = page.with_name("measured.html")
    text = re.sub('<meta http-equiv="Content-Sec[^>]*>', "", page.read_text("utf-8"))
    copy.write_text(text.replace("</body>", MEASURE + "</body>"), encoding="utf-8")
    found, _ = browse(copy, "--dump-dom", *options, width=width, height=height)
    title = re.search("<title>(.*?)</title>", found, re.DOTALL)[1]
    return json.loads(title.replace("&quot;", '"').replace("&amp;", "&"))


def test_nothing_is_logged_and_a_screenshot_is_kept(page, shots):
    for name, size in (("desktop", (1280, 800)), ("phone", (500, 900))):
        shot = shots / f"report_{name}.png"
        _, log = browse(page, f"--screenshot={shot}", width=size[0], height=size[1])
        assert "CONSOLE" not in log and "Refused to" not in log
        assert shot.read_bytes().startswith(b"\x89PNG")


def test_the_browser_does_report_what_a_page_would_load(page):
    # So that silence above means something.
    other = page.with_name("other.html")
    text = page.read_text("utf-8")
    other.write_text(
        text.replace("</body>", '<img src="nowhere.png" alt="x"></body>'), "utf-8"
    )
    _, log = browse(other, f"--screenshot={other.with_suffix('.png')}")
    assert "CONSOLE" in log and "Content Security Policy" in log


def test_the_first_screen_has_the_five_lines_and_the_top_of_the_picture(page):
    seen = measured(page, 1280, 800)
    assert len(seen["lines"]) == 5
    assert max(bottom for _, bottom, _ in seen["lines"]) < 480
    top, bottom, _ = seen["panels"][0]
    assert top < 560 and bottom < 700
    assert seen["resources"] == []
    assert len(seen["images"]) == 2
    assert all(width > 0 and alt for width, alt in seen["images"])
    assert seen["seconds"] == pytest.approx(0.5, abs=0.1)


def framed(page, width):
    """A page that shows the other in a frame: windows themselves stop at 500."""
    frame = page.with_name("frame.html")
    frame.write_text(f'<iframe width="{width}" height="800" src="measured.html">')
    return frame


def test_a_phone_scrolls_the_page_in_one_direction_only(page, shots):
    measured(page, 1280, 800)
    frame = framed(page, 390)
    script = (
        '<script>addEventListener("message", (e) => {document.title = e.data});'
        "</script>"
    )
    inner = page.with_name("measured.html")
    text = inner.read_text("utf-8").replace(
        "document.title = JSON.stringify(seen)",
        'parent.postMessage(JSON.stringify(seen), "*")',
    )
    inner.write_text(text, encoding="utf-8")
    frame.write_text(script + frame.read_text())
    found, _ = browse(frame, "--dump-dom")
    seen = json.loads(
        re.search("<title>(.*?)</title>", found)[1].replace("&quot;", '"')
    )
    assert seen["width"] == 390 and seen["body"] <= 390
    assert max(right for *_, right in seen["lines"] + seen["panels"]) <= 390
    browse(frame, f"--screenshot={shots / 'report_390.png'}", width=500, height=900)


def luminance(colour):
    """Relative luminance of ``rgb(r, g, b)`` (WCAG 2.1)."""
    shares = [int(part) / 255 for part in re.findall(r"\d+", colour)[:3]]
    lines = [
        s / 12.92 if s <= 0.04045 else ((s + 0.055) / 1.055) ** 2.4 for s in shares
    ]
    return 0.2126 * lines[0] + 0.7152 * lines[1] + 0.0722 * lines[2]


@pytest.mark.parametrize("dark", [False, True])
def test_text_stands_out_from_its_paper_by_day_and_by_night(page, shots, dark):
    options = ["--blink-settings=preferredColorScheme=0"] if dark else []
    seen = measured(page, 1280, 800, *options)
    paper, ink = luminance(seen["paper"]), luminance(seen["ink"])
    assert (paper < ink) == dark
    assert (max(paper, ink) + 0.05) / (min(paper, ink) + 0.05) > 7
    name = f"report_{'dark' if dark else 'light'}.png"
    browse(page, f"--screenshot={shots / name}", *options)
