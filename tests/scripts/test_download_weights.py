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


def test_a_file_is_fetched_and_compared(fetch, directory, source, monkeypatch):
    for known, code in (("0" * 8, 2), (DIGEST[:8], 0)):
        file = replace(FILES["vgg16"], url=source, sha256=known)
        monkeypatch.setitem(FILES, "vgg16", file)
        done = fetch("vgg16")
        assert done.code == code and known in done.err + DIGEST
        assert names(directory) == ([] if code else [file.name])
    assert (directory / file.name).read_bytes() == CONTENT
    assert "is there already" in fetch("vgg16").out
    assert f"vgg16         {directory / file.name}" in fetch("--list").out


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
    assert names(directory) == ["imagenet_huge.ckpt", name]
    assert (directory / name).read_bytes() == CONTENT
    repository = "/timm/vit_small_patch16_224.dino/resolve/"
    assert hub.asked[0] == f"{repository}main/model.safetensors"
    authors = "/UmiSonoda16/EquivariantModeling/resolve/"
    assert hub.asked[-1].startswith(authors) and hub.asked[-1].endswith("/imagenet_huge.ckpt")
