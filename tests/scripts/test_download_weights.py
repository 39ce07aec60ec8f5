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


def names(directory):
    return sorted(path.name for path in directory.iterdir())


def test_a_file_is_fetched_and_recorded(fetch, directory, source, monkeypatch):
    known = replace(FILES["vgg16"], url=source, sha256=DIGEST[:8])
    monkeypatch.setitem(FILES, "vgg16", known)
    done = fetch("vgg16")
    path = directory / "vgg16-397923af.pth"
    assert (done.code, done.out) == (0, f"vgg16: {path}\n")
    assert path.read_bytes() == CONTENT
    assert names(directory) == ["SHA256SUMS", path.name]
    assert (directory / "SHA256SUMS").read_text() == f"{DIGEST}  {path.name}\n"
    assert "is there already" in fetch("vgg16").out
    assert "vgg16         there" in fetch("--list").out


def test_one_that_fails_is_not_kept_and_does_not_stop_the_others(fetch, directory, source):
    done = fetch("--url", f"vgg16={source}", "--url", f"other.ckpt={source}")
    assert done.code == 1
    assert DIGEST in done.err and "expected 397923af" in done.err
    assert names(directory) == ["SHA256SUMS", "other.ckpt"]


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
    done = fetch("dino", "imagenet_huge.ckpt")
    assert done.code == 0, done.err
    name = "vit_small_patch16_224.dino.safetensors"
    assert names(directory) == ["SHA256SUMS", "imagenet_huge.ckpt", name]
    assert (directory / name).read_bytes() == CONTENT
    repository = "/timm/vit_small_patch16_224.dino/resolve/"
    assert hub.asked[0] == f"{repository}main/model.safetensors"
    authors = "/UmiSonoda16/EquivariantModeling/resolve/"
    assert hub.asked[-1] == f"{authors}{'0' * 40}/imagenet_huge.ckpt"


def test_a_file_of_the_hub_that_is_not_what_it_declares(fetch, directory, hub):
    hub.digest = "1" * 64
    done = fetch("dino")
    assert done.code == 1
    assert DIGEST in done.err and names(directory) == []
