"""Boxes for the tests of the service: what is installed in them, and whether this machine can have one."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import runhist
from tests.conftest import missing
from tests.service.box import PAM_MODULE, TOOLS, Box

PLACE, BORROWED = "/opt/runhist", "/opt/borrowed"
OLD_VERSION = "0.0.1"
# A client that connects once and waits for its answer for much longer than the commands do: this machine may be busy.
ASK = f"""{PLACE}/bin/python -c '
from runhist.connection import Connection
Connection.open(timeout=90).call("GetStatus", {{}}, timeout=90)'"""
COMMANDS = {"runhist": "runhist.cli.main", "runhistd": "runhistd.cli"}
HIDDEN = tuple(map(Path, ("/root", "/home", "/tmp")))  # from a sandboxed service


def visible_python() -> Path:
    """An interpreter of this one's version that a sandboxed service may start."""
    name = f"python{sys.version_info.major}.{sys.version_info.minor}"
    for folder in (Path(sys.base_prefix), Path("/usr/local"), Path("/usr")):
        if (folder / "bin" / name).exists() and not any(folder.is_relative_to(hidden) for hidden in HIDDEN):
            return folder / "bin" / name
    missing(f"there is no {name} outside of home directories")
    raise AssertionError


def lay_out(where: Path, wheels: list[Path], version: str | None = None) -> None:
    """A virtual environment as pip would make it at PLACE: our wheels, and the libraries of this one. `version`: as if of
    that one."""
    python = visible_python()
    packages = where / "lib" / python.name / "site-packages"
    options = ("--no-index", "--no-deps", "--no-compile", "--root-user-action=ignore", "--disable-pip-version-check")
    subprocess.run([sys.executable, "-m", "pip", "install", "-q", *options, "--target", packages, *wheels], check=True)
    shutil.rmtree(packages / "bin", ignore_errors=True)
    (packages / "borrowed.pth").write_text(BORROWED)
    (where / "pyvenv.cfg").write_text(f"home = {python.parent}\ninclude-system-site-packages = false\n")
    commands = where / "bin"
    commands.mkdir()
    (commands / "python").symlink_to(python)
    for command, module in COMMANDS.items():
        script = commands / command
        script.write_text(f"#!{PLACE}/bin/python\nimport sys\nfrom {module} import main\nsys.exit(main())\n")
        script.chmod(0o755)
    if version is not None:
        package = packages / "runhist" / "__init__.py"
        package.write_text(package.read_text().replace(f'"{runhist.__version__}"', f'"{version}"'))


@pytest.fixture(scope="session")
def installations(wheels: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """What lies at PLACE, of an older version and of this one: folders of this machine by their names in a box."""
    folder = tmp_path_factory.mktemp("installations")
    folder.chmod(0o755)
    for name, version in (("new", None), ("old", OLD_VERSION)):
        lay_out(folder / name, list(wheels.values()), version)
    return {"/opt/new": folder / "new", "/opt/old": folder / "old", BORROWED: Path(sysconfig.get_path("platlib"))}


@pytest.fixture
def new_box(installations: dict[str, Path]) -> Iterator[Callable[[], Box]]:
    """Boots machines with runhist at PLACE; they end with the test."""
    if os.geteuid() != 0:
        pytest.skip("only root can boot a container")
    mount = ["unshare", "--mount", "mount", "-t", "tmpfs", "tmpfs", "/run"]
    if subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("nothing can be mounted here")
    for tool in TOOLS:
        if shutil.which(tool) is None:
            missing(f"{tool} is not installed")
    if not any(folder.rglob(PAM_MODULE) for folder in (Path("/lib"), Path("/usr/lib"))):
        missing("libpam-systemd is not installed")
    boxes = []

    def boot() -> Box:
        box = Box(installations)
        boxes.append(box)
        box.__enter__()
        box.run(f"ln -s new {PLACE}; ln -s {PLACE}/bin/runhist {PLACE}/bin/runhistd /usr/local/bin/")
        return box

    yield boot
    for box in boxes:
        box.__exit__()


@pytest.fixture
def box(new_box: Callable[[], Box]) -> Box:
    """One machine."""
    return new_box()
