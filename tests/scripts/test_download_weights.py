from __future__ import annotations

import hashlib
import threading
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import huggingface_hub
import pytest

from common.pretrained.files import FILES

CONTENT = b"weights " * 1000
DIGEST = hashlib.sha256(CONTENT).hexdigest()


@pytest.fixture
def directory(tmp_path):
    return tmp_path / "weights"


@pytest.fixture
def source(tmp_path):
    """The address of a file that can be fetched without a network."""
    path = tmp_path / "served.pth"
    path.write_bytes(CONTENT)
    return path.as_uri()


@pytest.fixture
def fetch(call, directory):
    return lambda *flags: call("download_weights", *flags, "--weights_dir", directory)


def known(monkeypatch, key, **changes):
    monkeypatch.setitem(FILES, key, replace(FILES[key], **changes))


def names(directory):
    return sorted(path.name for path in directory.iterdir())


def test_a_file_is_fetched_and_recorded(fetch, directory, source, monkeypatch):
    known(monkeypatch, "vgg16", url=source, sha256=DIGEST[:8])
    done = fetch("vgg16")
    path = directory / "vgg16-397923af.pth"
    assert (done.code, done.out) == (0, f"vgg16: {path}\n")
    assert path.read_bytes() == CONTENT
    assert names(directory) == ["SHA256SUMS", path.name]
    assert (directory / "SHA256SUMS").read_text() == f"{DIGEST}  {path.name}\n"
    assert "is there already" in fetch("vgg16").out
    # what another file adds leaves the first line as it is
    assert fetch("--url", f"tokenizer={source}").code == 0
    lines = (directory / "SHA256SUMS").read_text().splitlines()
    assert lines == [f"{DIGEST}  tokenizer.ckpt", f"{DIGEST}  {path.name}"]


def test_a_wrong_file_is_not_kept(fetch, directory, source):
    done = fetch("--url", f"vgg16={source}")
    assert done.code == 1
    assert f"error: vgg16: vgg16-397923af.pth: SHA-256 {DIGEST}, expected 397923af" in done.err
    assert names(directory) == []


def test_one_that_fails_does_not_stop_the_others(fetch, directory, source, tmp_path):
    absent = (tmp_path / "absent.pth").as_uri()
    done = fetch("--url", f"places_large={absent}", "--url", f"tokenizer={source}")
    assert done.code == 1
    (line,) = [line for line in done.err.splitlines() if line.startswith("error")]
    assert line.startswith("error: places_large: URLError: ") and line.endswith(f"from {absent}")
    assert names(directory) == ["SHA256SUMS", "tokenizer.ckpt"]


def test_the_format_follows_the_address(fetch, directory, source):
    assert fetch("--url", f"dino={source}").code == 0
    assert "vit_small_patch16_224.dino.pth" in names(directory)


def test_what_is_there_is_checked(fetch, directory, source):
    fetch("--url", f"tokenizer={source}")
    done = fetch("--check")
    assert done.code == 0
    assert "tokenizer: tokenizer.ckpt: as expected" in done.out
    assert "vgg16: missing" in done.out
    (directory / "tokenizer.ckpt").write_bytes(b"damaged")
    (directory / "vgg16-397923af.pth").write_bytes(b"another file")  # was never recorded
    (directory / "places_large.ckpt").write_bytes(b"unknown")
    done = fetch("--check")
    assert done.code == 1
    assert f"tokenizer.ckpt: SHA-256 {hashlib.sha256(b'damaged').hexdigest()}" in done.err
    assert "vgg16-397923af.pth: SHA-256" in done.err
    assert "places_large.ckpt: there; no SHA-256 to compare with" in done.out
    (directory / "tokenizer.ckpt").unlink()
    assert "tokenizer.ckpt: missing, though SHA256SUMS lists it" in fetch("--check").err


def test_the_list(fetch, directory, source):
    fetch("--url", f"tokenizer={source}")
    rows = {line.split()[0]: line for line in fetch("--list").out.splitlines()[1:]}
    assert rows.keys() == {"key", *FILES}
    assert rows["tokenizer"].split()[1:5] == ["tokenizer.ckpt", "0.0", "yes", "recorded"]
    assert rows["tokenizer"].endswith("(not confirmed)")
    assert rows["vgg16"].split()[2:5] == ["553.4", "no", "397923af..."]
    assert rows["lpips"].endswith("comes inside the package torchmetrics, nothing to fetch")


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("vgg",), "KEY: found 'vgg', expected one of vgg16, lpips, dino"),
        (("--url", "dino"), "--url: found dino, expected KEY=URL"),
        (("--url", "vgg=file:///x"), "KEY: found 'vgg'"),
    ],
)
def test_mistakes(fetch, flags, message):
    done = fetch(*flags)
    assert (done.code, done.out) == (2, "")
    assert f"error: {message}" in done.err


def test_a_damaged_list_of_sums(fetch, directory):
    directory.mkdir()
    (directory / "SHA256SUMS").write_text("not a sum\n")
    done = fetch("--check")
    assert done.code == 2 and "SHA256SUMS, line 1: expected a SHA-256" in done.err


@pytest.fixture
def hub(monkeypatch):
    """A server that answers as the Hugging Face hub does; `hub.digest` is what it declares."""

    class Handler(BaseHTTPRequestHandler):
        def do_HEAD(self):
            if "/resolve/" in self.path:
                server.asked.append(self.path)
            self.send_response(200)
            self.send_header("X-Repo-Commit", "0" * 40)
            self.send_header("ETag", f'"{server.digest}"')
            self.send_header("Content-Length", str(len(CONTENT)))
            self.end_headers()

        def do_GET(self):
            self.do_HEAD()
            self.wfile.write(CONTENT)

        def log_message(self, *_):
            pass

    server = ThreadingHTTPServer(("localhost", 0), Handler)
    server.digest, server.asked = DIGEST, []
    address = f"http://localhost:{server.server_port}"
    template = address + "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", address)
    monkeypatch.setattr(huggingface_hub.constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    yield server
    server.shutdown()
    server.server_close()


def test_a_file_of_the_hub(fetch, directory, hub):
    done = fetch("dino")
    assert done.code == 0, done.err
    name = "vit_small_patch16_224.dino.safetensors"
    assert (directory / name).read_bytes() == CONTENT
    assert names(directory) == ["SHA256SUMS", name]
    repository = "/timm/vit_small_patch16_224.dino/resolve/"
    assert hub.asked[0] == f"{repository}main/model.safetensors"
    assert hub.asked[-1] == f"{repository}{'0' * 40}/model.safetensors"


def test_a_file_of_the_hub_that_is_not_what_it_declares(fetch, directory, hub):
    hub.digest = "1" * 64
    done = fetch("dino")
    assert done.code == 1
    assert f"SHA-256 {DIGEST}, expected 1111" in done.err
    assert names(directory) == []
