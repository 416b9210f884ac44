"""What is installed: both wheels, alone, without the checkout."""

from __future__ import annotations

import json
import os
import shutil
import site
import subprocess
import sys
import sysconfig
import zipfile
from email.parser import Parser
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

import runhist
import runhistd

if TYPE_CHECKING:
    from tests.conftest import Daemon

ROOT = Path(__file__).parent.parent
UNITS = [
    f"units/{path.relative_to(ROOT)}" for folder in ("systemd", "launchd") for path in (ROOT / folder).rglob("*.*")
]
IMPORT_ALL = """
import importlib, pkgutil, sys, runhist
for module in pkgutil.walk_packages(runhist.__path__, "runhist."):
    if not module.name.endswith("__main__") and not module.name.startswith("runhist.aio"):
        importlib.import_module(module.name)
sys.stdout.write(runhist.__file__)
"""


def install(python: str, where: Path, *chosen: Path) -> Path:
    """A fresh virtual environment with only these wheels; returns its folder of commands."""
    subprocess.run([python, "-m", "venv", where], check=True)
    commands = where / "bin"
    pip: list[str | Path] = [commands / "python", "-m", "pip", "--disable-pip-version-check", "install", "-q"]
    subprocess.run([*pip, "--no-index", "--no-deps", *chosen], check=True)
    return commands


def output_of(*command: str | Path, cwd: Path) -> str:
    """What a command prints that has to succeed, far from the checkout and its environment."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "RUNHIST"))}
    ended = subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr
    return ended.stdout


def real_python_39() -> str:
    """An interpreter of that version that starts; version managers leave commands that do not."""
    managed = Path.home().glob(".pyenv/versions/3.9*/bin/python3.9")
    for candidate in filter(None, (shutil.which("python3.9"), *map(str, managed))):
        shown = subprocess.run([candidate, "-c", "import venv, sys; sys.stdout.write(sys.version)"], capture_output=True)
        if shown.stdout.startswith(b"3.9"):
            return candidate
    pytest.skip("there is no Python 3.9 here")


def test_the_version_comes_from_one_place(wheels: dict[str, Path]) -> None:
    assert runhistd.__version__ == runhist.__version__
    assert {path.name.split("-")[1] for path in wheels.values()} == {runhist.__version__}
    for project in (ROOT, ROOT / "client"):
        assert runhist.__version__ not in (project / "pyproject.toml").read_text()


@pytest.mark.parametrize(
    ("distribution", "needed"),
    [
        ("runhist", ["py.typed", "protocol/dev.runhist.History.varlink"]),
        ("runhistd", ["py.typed", "store/schema.sql", *UNITS]),
    ],
)
def test_a_wheel_holds_its_package_wholly_and_nothing_else(
    distribution: str, needed: list[str], wheels: dict[str, Path]
) -> None:
    with zipfile.ZipFile(wheels[distribution]) as wheel:
        names = set(wheel.namelist())
    package = (ROOT if distribution == "runhistd" else ROOT / "client") / distribution
    sources = {str(path.relative_to(package.parent)) for path in package.rglob("*.py")}
    assert sources <= names
    assert {f"{distribution}/{name}" for name in needed} <= names
    assert {name.partition("/")[0].partition("-")[0] for name in names} == {distribution}


def test_the_client_needs_nothing_and_the_daemon_needs_the_client(wheels: dict[str, Path]) -> None:
    requirements = {}
    for distribution, path in wheels.items():
        with zipfile.ZipFile(path) as wheel:
            (metadata,) = (name for name in wheel.namelist() if name.endswith("/METADATA"))
            headers = Parser().parsestr(wheel.read(metadata).decode())
        requirements[distribution] = [
            line for line in headers.get_all("Requires-Dist") or [] if "extra ==" not in line
        ]
    assert requirements["runhist"] == []
    assert "runhist" in requirements["runhistd"]


@pytest.mark.long
def test_both_commands_start_without_the_checkout(wheels: dict[str, Path], tmp_path: Path) -> None:
    commands = install(sys.executable, tmp_path / "venv", *wheels.values())
    (own,) = (tmp_path / "venv").glob("lib/python*/site-packages")
    borrowed = [sysconfig.get_path("platlib"), *site.getsitepackages()]  # trio and the like, found behind our own
    (own / "borrowed.pth").write_text("\n".join(borrowed))
    assert output_of(commands / "runhist", "--version", cwd=tmp_path) == f"runhist {runhist.__version__}\n"
    assert output_of(commands / "runhistd", "--version", cwd=tmp_path) == f"runhistd {runhist.__version__}\n"
    program = "import sys; from runhistd.service import files; sys.stdout.write(files.shipped_text(sys.argv[1]))"
    installed = output_of(commands / "python", "-c", program, "launchd/dev.runhist.plist", cwd=tmp_path)
    assert installed == (ROOT / "launchd/dev.runhist.plist").read_text()
    program = "import sys, runhist.cli.main, runhistd.daemon.signals, runhistd.demo, runhistd.store.verify as last\n"
    shown = output_of(commands / "python", "-c", program + "sys.stdout.write(last.__file__)", cwd=tmp_path)
    assert Path(shown).is_relative_to(own)


@pytest.mark.long
def test_the_clients_wheel_alone_works_on_python_39(wheels: dict[str, Path], tmp_path: Path) -> None:
    commands = install(real_python_39(), tmp_path / "venv", wheels["runhist"])
    assert output_of(commands / "runhist", "--version", cwd=tmp_path) == f"runhist {runhist.__version__}\n"
    assert "usage: runhist" in output_of(commands / "runhist", "--help", cwd=tmp_path)
    shown = output_of(commands / "python", "-W", "error", "-c", IMPORT_ALL, cwd=tmp_path)
    assert Path(shown).is_relative_to(tmp_path / "venv")
    program = "import sys\ntry: import runhist.aio\nexcept ImportError as error: sys.stdout.write(str(error))"
    assert "pip install 'runhist[async]'" in output_of(commands / "python", "-c", program, cwd=tmp_path)


@pytest.mark.long
@pytest.mark.parametrize("loop", ["asyncio", "trio"])
def test_the_async_client_works_on_python_39(wheels: dict[str, Path], tmp_path: Path, daemon: Daemon, loop: str) -> None:
    commands = install(real_python_39(), tmp_path / "venv", wheels["runhist"])
    wanted = [f"runhist[async] @ {wheels['runhist'].as_uri()}", "trio"]
    subprocess.run([commands / "python", "-m", "pip", "--disable-pip-version-check", "install", "-q", *wanted], check=True)
    agent: list[str | Path] = [commands / "python", "-W", "error", ROOT / "client" / "examples" / "agent.py", "--loop", loop]
    told = subprocess.run(agent, env={**daemon.start().env, "PYTHONPATH": ""}, capture_output=True, text=True)
    assert (told.returncode, told.stderr) == (0, "")
    shown: list[str | Path] = [commands / "runhist", "show", "--json", told.stdout.strip()]
    assert json.loads(subprocess.run(shown, env=daemon.env, capture_output=True).stdout)["run"]["status"] == "completed"
