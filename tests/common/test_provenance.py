from __future__ import annotations

import json
import subprocess

import torch

from common import provenance as environment


def git(folder, *arguments):
    identity = ("-c", "user.name=a", "-c", "user.email=a@b.c")
    subprocess.run(["git", "-C", str(folder), *identity, *arguments], check=True, timeout=60)


def test_a_record_is_plain_and_names_versions(tmp_path):
    record = environment.describe(tmp_path)
    assert json.loads(json.dumps(record)) == record
    assert record["torch"].split("+")[0] == torch.__version__.split("+")[0]
    assert record["cores"] >= 1
    assert record["processor"]


def test_the_commit_says_whether_files_differ_from_it(tmp_path):
    assert environment.commit(tmp_path / "absent") is None
    git(tmp_path, "init", "-q")
    (tmp_path / "a").write_text("1")
    git(tmp_path, "add", "a")
    git(tmp_path, "commit", "-qm", "a")
    clean = environment.commit(tmp_path)
    assert len(clean) == 40
    (tmp_path / "untracked").write_text("1")
    assert environment.commit(tmp_path) == clean
    (tmp_path / "a").write_text("2")
    assert environment.commit(tmp_path) == clean + "+changes"
