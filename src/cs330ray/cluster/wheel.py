"""The running package as a wheel, for the nodes of a cluster: the code that a study runs is the code that sent it.

Ray installs a wheel by `pip install --target`, with what it requires: this one requires nothing, since the nodes have
the pinned versions already. Ray also takes a wheel's file name for its content: hence the digest in the name.
"""

import base64
import hashlib
import stat
import zipfile
from collections.abc import Mapping
from pathlib import Path

from cs330ray import package

NAME = "cs330ray"
TAG = "py3-none-any"
SHIPPED = "shipped"  # the folder of the package for the studies that come with it
BEFORE_ALL_TIMES = (1980, 1, 1, 0, 0, 0)


def build(shipped: Path, into: Path) -> Path:
    """Write the running package and the study files of `shipped` as a wheel into a directory; its file.

    The same content makes the same bytes, whether the package runs from a checkout or from a wheel.
    """
    version = package.VERSION
    content = _package(shipped)
    build_tag = f"0{_digest(content)[:16]}"
    info = f"{NAME}-{version}.dist-info"
    content |= {f"{info}/{name}": text.encode() for name, text in _metadata(version, build_tag).items()}
    content[f"{info}/RECORD"] = _record(content, f"{info}/RECORD").encode()
    wheel = into / f"{NAME}-{version}-{build_tag}-{TAG}.whl"
    with zipfile.ZipFile(wheel, "w", zipfile.ZIP_STORED) as archive:  # what deflate makes depends on its version
        for name, data in content.items():
            entry = zipfile.ZipInfo(name, BEFORE_ALL_TIMES)
            entry.create_system, entry.external_attr = 3, (stat.S_IFREG | 0o644) << 16
            archive.writestr(entry, data)
    return wheel


def _package(shipped: Path) -> dict[str, bytes]:
    """The files of the package by their names in the wheel, sorted."""
    root = package.source()
    found = {path.relative_to(root): path for path in root.rglob("*") if path.is_file()}
    kept = {
        f"{NAME}/{name.as_posix()}": path
        for name, path in found.items()
        if name.parts[0] != SHIPPED and not any(part == "__pycache__" or part.startswith(".") for part in name.parts)
    }
    kept |= {f"{NAME}/{SHIPPED}/{path.name}": path for path in shipped.glob("*.toml")}
    return {name: kept[name].read_bytes() for name in sorted(kept)}


def _digest(content: Mapping[str, bytes]) -> str:
    digest = hashlib.sha256()
    for name, data in content.items():
        digest.update(name.encode() + b"\0" + hashlib.sha256(data).digest())
    return digest.hexdigest()


def _metadata(version: str, build_tag: str) -> dict[str, str]:
    return {
        "METADATA": f"Metadata-Version: 2.1\nName: {NAME}\nVersion: {version}\n",
        "WHEEL": f"Wheel-Version: 1.0\nGenerator: {NAME} {version}\nRoot-Is-Purelib: true\nTag: {TAG}\n"
        f"Build: {build_tag}\n",
        "entry_points.txt": f"[console_scripts]\n{NAME} = cs330ray.cli.app:main\n",
    }


def _record(content: Mapping[str, bytes], own: str) -> str:
    lines = [f"{name},sha256={_hash(data)},{len(data)}\n" for name, data in content.items()]
    return "".join([*lines, f"{own},,\n"])


def _hash(data: bytes) -> str:
    return base64.urlsafe_b64encode(hashlib.sha256(data).digest()).rstrip(b"=").decode()
