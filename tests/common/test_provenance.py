import json
import subprocess

from common import provenance


def git(folder, *arguments):
    identity = ("-c", "user.name=a", "-c", "user.email=a@b.c")
    subprocess.run(["git", "-C", str(folder), *identity, *arguments], check=True, timeout=60)


def test_a_record_names_versions_and_whether_files_differ_from_the_commit(tmp_path, monkeypatch):
    monkeypatch.setattr(provenance, "REPOSITORY", tmp_path)
    record = provenance.describe()
    assert record["commit"] is None and json.loads(json.dumps(record)) == record
    git(tmp_path, "init", "-q")
    (tmp_path / "a").write_text("1")
    git(tmp_path, "add", "a")
    git(tmp_path, "commit", "-qm", "a")
    clean = provenance.describe()["commit"]
    assert len(clean) == 40
    (tmp_path / "a").write_text("2")
    assert provenance.describe()["commit"] == clean + "+changes"
