# SPDX-License-Identifier: Apache-2.0
"""Layers and docker archives: what is in them, and that the same files give the same bytes."""

import hashlib
import json
import os
import tarfile
from pathlib import Path

import pytest

from hack.image.archive import Image, pack, write


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """A few files, of every kind that is told apart."""
    root = tmp_path / "tree"
    (root / "bin").mkdir(parents=True)
    (root / "bin" / "tool").write_text("program")
    (root / "bin" / "tool").chmod(0o4711)
    (root / "etc").mkdir(mode=0o700)
    (root / "etc" / "text").write_text("words")
    (root / "etc" / "text").chmod(0o600)
    (root / "link").symlink_to("bin/tool")
    (root / "tmp").mkdir()
    (root / "tmp").chmod(0o1777)
    return root


def packed(tree: Path, target: Path) -> dict[str, tarfile.TarInfo]:
    pack(tree, target)
    with tarfile.open(target) as layer:
        return {info.name: info for info in layer.getmembers()}


def test_layer_is_sorted_and_without_what_is_of_its_maker(tree: Path, tmp_path: Path) -> None:
    """Owners, times, set-user-ID and the maker's umask are not in it."""
    members = packed(tree, tmp_path / "layer.tar")
    assert list(members) == ["bin", "bin/tool", "etc", "etc/text", "link", "tmp"]
    assert {(info.uid, info.gid, info.mtime, info.uname) for info in members.values()} == {(0, 0, 0, "")}
    modes = {name: info.mode for name, info in members.items() if not info.issym()}
    assert modes == {"bin": 0o755, "bin/tool": 0o755, "etc": 0o755, "etc/text": 0o644, "tmp": 0o1777}
    assert members["link"].linkname == "bin/tool"


def test_layer_made_again_has_the_same_bytes(tree: Path, tmp_path: Path) -> None:
    """Whatever the times of its files, and the order in which they were made."""
    pack(tree, tmp_path / "first.tar")
    os.utime(tree / "etc" / "text", (1, 1))
    (tree / "bin" / "tool").rename(tree / "bin" / "other")
    (tree / "bin" / "other").rename(tree / "bin" / "tool")
    pack(tree, tmp_path / "second.tar")
    assert (tmp_path / "first.tar").read_bytes() == (tmp_path / "second.tar").read_bytes()


def test_archive_names_layers_and_configuration_by_their_digests(tree: Path, tmp_path: Path) -> None:
    """Importers compare the digests in the configuration with the layers; a layer of two images is there once."""
    pack(tree, tmp_path / "layer.tar")
    digest = hashlib.sha256((tmp_path / "layer.tar").read_bytes()).hexdigest()
    images = [Image(name, "arm64", {"Entrypoint": [f"/{name}"]}, [tmp_path / "layer.tar"]) for name in ("one", "two")]
    write(images, tmp_path / "archive.tar")
    with tarfile.open(tmp_path / "archive.tar") as archive:
        contents = {info.name: archive.extractfile(info).read() for info in archive.getmembers()}
        assert len(contents) == len(archive.getmembers())
    manifest = json.loads(contents["manifest.json"])
    assert [entry["RepoTags"] for entry in manifest] == [["one"], ["two"]]
    for entry, entrypoint in zip(manifest, ("/one", "/two"), strict=True):
        assert entry["Layers"] == [f"{digest}.tar"]
        config = json.loads(contents[entry["Config"]])
        assert entry["Config"] == f"{hashlib.sha256(contents[entry['Config']]).hexdigest()}.json"
        assert config["rootfs"]["diff_ids"] == [f"sha256:{digest}"]
        assert (config["architecture"], config["config"]["Entrypoint"]) == ("arm64", [entrypoint])
    assert hashlib.sha256(contents[f"{digest}.tar"]).hexdigest() == digest
