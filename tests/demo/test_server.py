"""The demo's server: what it answers, and whom it refuses."""

import base64
import http.client
import io
import json
import socket

import numpy as np
import pytest
import soundfile
import torch

from espnet2_lamer.constants import num_frames
from espnet2_lamer.demo import server as module
from espnet2_lamer.demo.listening import Listener, envelope
from espnet2_lamer.demo.server import DemoServer
from espnet2_lamer.errors import RecipeError
from espnet2_lamer.evaluation.head_decoding import GREEDY, load_speech2text
from espnet2_lamer.layers import record_routing


def ask(server, method="POST", path="/listen", body=b"", **headers):
    """Return status and content; a header that is None is left out."""
    given = {"X-Lamer-Token": server.token} | {
        name.replace("_", "-"): value for name, value in headers.items()
    }
    given = {name: value for name, value in given.items() if value is not None}
    connection = http.client.HTTPConnection("127.0.0.1", server.server_port)
    connection.request(method, path, body or None, given)
    answer = connection.getresponse()
    content = answer.read()
    connection.close()
    if answer.headers["Content-Type"] == "application/json":
        return answer.status, json.loads(content), answer
    return answer.status, content.decode(), answer


@pytest.mark.parametrize("form", ["WAV", "FLAC", "OGG", "MP3"])
def test_text_language_and_gates_are_those_of_the_models(server, models, encoded, form):
    status, found, _ = ask(server, body=encoded[form])
    assert status == 200
    # Lossy formats change samples, so compare with what the file holds.
    wave = soundfile.read(io.BytesIO(encoded[form]), dtype="float32")[0]
    assert found["seconds"] == pytest.approx(len(wave) / 16000, abs=0.1)
    if form != "WAV":
        return
    text = load_speech2text(models[0].parent / "asr_tiny" / "final", GREEDY)(wave)
    assert [one["text"] for one in found["text"]] == [text[0][0]] and text[0][0]
    assert [one["language"] for one in found["language"]] in (["cmn"], ["eng"])
    with record_routing(models[2]) as record:
        models[2].extract_features(wave)
    assert [layer["layer"] for layer in found["layers"]] == [1, 2]
    for layer, routing in zip(found["layers"], record, strict=True):
        gates = np.frombuffer(base64.b64decode(layer["gates"]), np.uint8)
        gates = gates.reshape(layer["frames"], layer["experts"]) / 255
        assert layer["frames"] == num_frames(len(wave))
        np.testing.assert_allclose(gates, routing.gates[0], atol=0.5 / 255 + 1e-6)


def test_stereo_of_another_rate_is_read_as_the_recipe_does(server, wave):
    buffer = io.BytesIO()
    both = np.repeat(np.stack([wave, wave], 1), 3, axis=0)
    soundfile.write(buffer, both, 48000, format="WAV")
    status, found, _ = ask(server, body=buffer.getvalue())
    assert status == 200 and found["seconds"] == pytest.approx(2.0)


def _cut(encoded, wave):
    return encoded["WAV"][:-1000]


def _short(encoded, wave):
    buffer = io.BytesIO()
    soundfile.write(buffer, wave[:300], 16000, format="WAV")
    return buffer.getvalue()


def _long(encoded, wave):
    buffer = io.BytesIO()
    soundfile.write(buffer, np.tile(wave, 3), 16000, format="FLAC")
    return buffer.getvalue()


def _silent(encoded, wave):
    buffer = io.BytesIO()
    soundfile.write(buffer, 0 * wave, 16000, format="WAV")
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("content", "status", "message"),
    [
        (lambda *_: b"\x1aE\xdf\xa3 webm", 415, "expected one of these"),
        (lambda *_: b"/etc/passwd", 415, "expected one of these"),
        (lambda *_: b"", 415, "expected one of these"),
        (lambda *_: b"RIFF" + bytes(100), 422, "not readable as audio"),
        (_cut, 422, "truncated"),
        (_short, 422, "300 samples at 16 kHz, expected at least 400"),
        (_long, 422, "found 6.0 s, expected at most 5 s"),
        (_silent, 422, "silent"),
    ],
)
def test_what_cannot_be_heard_is_refused_with_the_reason(
    server, encoded, wave, content, status, message
):
    found, answer, _ = ask(server, body=content(encoded, wave), Content_Length=None)
    assert (found, message in answer["error"]) == (status, True), answer
    assert "/tmp" not in answer["error"] and "recording." not in answer["error"]


@pytest.mark.parametrize(
    ("path", "headers"),
    [
        ("/listen", {"X_Lamer_Token": None}),
        ("/listen", {"X_Lamer_Token": "x"}),
        ("/listen?token=here", {"X_Lamer_Token": None}),
        ("/listen", {"Origin": "http://evil.example"}),
        ("/listen", {"Origin": "null"}),
        ("/listen", {"Host": "evil.example"}),
        ("/listen", {"Host": "127.0.0.1.evil.example:7860"}),
    ],
)
def test_other_pages_and_other_users_are_refused(server, encoded, path, headers):
    status, answer, response = ask(server, body=encoded["WAV"], path=path, **headers)
    assert status == 403 and "error" in answer
    assert response.headers["Access-Control-Allow-Origin"] is None


def test_the_page_itself_needs_the_address_that_was_printed(server):
    assert ask(server, "GET", "/")[0] == 403
    assert ask(server, "GET", "/?token=wrong")[0] == 403
    status, page, response = ask(server, "GET", f"/?token={server.token}")
    assert status == 200 and "<title>lamer demo</title>" in page
    assert "default-src 'none'" in response.headers["Content-Security-Policy"]
    assert ask(server, "GET", "/model", X_Lamer_Token=None)[0] == 403
    assert ask(server, "GET", "/model")[1]["text"] == ["asr_tiny"]


@pytest.mark.parametrize("path", ["/x", "/../setup.cfg", "/page.js/..", "//etc/passwd"])
def test_no_path_of_a_request_is_a_file(server, path):
    assert ask(server, "GET", path)[0] == 404
    assert ask(server, "POST", path, b"x")[0] == 404


def test_too_large_recordings_are_refused_before_they_are_received(server):
    with socket.create_connection(("127.0.0.1", server.server_port)) as connection:
        head = (
            f"POST /listen HTTP/1.1\r\nHost: 127.0.0.1\r\nX-Lamer-Token: {server.token}"
            f"\r\nContent-Length: {module.MAX_BYTES + 1}\r\n\r\n"
        )
        connection.sendall(head.encode())
        assert b" 413 " in connection.recv(4096)


@pytest.mark.parametrize("length", [None, "x", "-1", "1e9"])
def test_a_recording_without_a_length_is_refused(server, length):
    with socket.create_connection(("127.0.0.1", server.server_port)) as connection:
        line = f"Content-Length: {length}\r\n" if length else ""
        head = "POST /listen HTTP/1.1\r\nHost: localhost\r\n"
        head += f"X-Lamer-Token: {server.token}\r\n{line}\r\n"
        connection.sendall(head.encode())
        assert b" 411 " in connection.recv(4096)


def test_it_listens_on_this_machine_alone_and_a_taken_port_is_named(server, models):
    assert server.server_address[0] == "127.0.0.1"
    with pytest.raises(RecipeError, match=f"--port {server.server_port}: .*another"):
        DemoServer(server.listener, server.server_port)


def test_a_failure_of_the_model_is_no_end_of_the_server(server, encoded, monkeypatch):
    def fail(wave):
        raise RuntimeError("a secret of this machine")

    monkeypatch.setattr(server.listener, "listen", fail)
    status, answer, _ = ask(server, body=encoded["WAV"])
    assert status == 500 and "secret" not in answer["error"]
    monkeypatch.undo()
    assert ask(server, body=encoded["WAV"])[0] == 200


def test_a_model_without_routers_has_no_experts_to_show(tmp_path, wave):
    from espnet2_lamer.convert.huggingface import save_huggingface
    from tests.export.family import build

    save_huggingface(build().wav2vec2, tmp_path / "hubert")
    listener = Listener([str(tmp_path / "hubert")])
    found = listener.listen(wave)
    assert (found["layers"], found["text"], found["language"]) == ([], [], [])
    assert listener.describe()["model"].startswith("HuBERT, 2 layers")


def test_the_envelope_is_the_range_of_every_part():
    wave = torch.randn(1000, generator=torch.Generator().manual_seed(0)).numpy()
    found = np.array(envelope(wave, 10))
    parts = wave.reshape(10, 100)
    np.testing.assert_allclose(found[:, 0], parts.min(1), atol=1e-4)
    np.testing.assert_allclose(found[:, 1], parts.max(1), atol=1e-4)
    assert len(envelope(wave[:3], 10)) == 3
