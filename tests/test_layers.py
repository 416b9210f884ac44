"""Imports point one way: cli → daemon → store → model, and the client knows nothing of the daemon."""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
FILES = sorted([*ROOT.glob("runhistd/**/*.py"), *ROOT.glob("client/runhist/**/*.py")])
# What of ours a part may import: one module, or with .* all that is in a package. The longest name of a part wins.
MAY_IMPORT = {
    "runhistd": {"runhist"},
    "runhistd.__main__": {"runhistd.cli"},
    "runhistd.cli": {
        *("runhistd", "runhistd.config", "runhistd.demo.*", "runhistd.daemon.*", "runhistd.store.*", "runhist.paths"),
        *("runhistd.backups", "runhistd.rescue", "runhistd.terminal", "runhistd.service.*"),
    },
    "runhistd.service": {
        *("runhistd", "runhistd.daemon.instance", "runhistd.service.*", "runhistd.terminal", "runhist.paths"),
    },
    "runhistd.backups": {
        *("runhistd", "runhistd.config", "runhistd.daemon.instance", "runhistd.store.*", "runhistd.terminal"),
        "runhist.paths",
    },
    "runhistd.rescue": {
        *("runhistd.backups", "runhistd.daemon.instance", "runhistd.store.*", "runhistd.terminal"),
        "runhist.paths",
    },
    "runhistd.terminal": {"runhistd.store.verify"},
    "runhistd.config": set(),
    "runhistd.demo": {"runhistd", "runhistd.demo.*", "runhist.*"},
    "runhistd.daemon": {
        *("runhistd", "runhistd.config", "runhistd.daemon.*", "runhistd.store.*", "runhistd.model.*"),
        *("runhist", "runhist.identity", "runhist.paths", "runhist.protocol.*", "runhist.spool"),
    },
    "runhistd.store": {"runhistd.store.*", "runhistd.model.*"},
    "runhistd.model": {"runhistd.model.*"},
    "runhist": {"runhist.*"},
    "runhist.aio": {"runhist.*"},
    "runhist.identity": set(),
    "runhist.environment": set(),
    "runhist.paths": {"runhist.environment"},
    "runhist.protocol": {"runhist.protocol.*"},
    "runhist.spool": {"runhist.identity", "runhist.ids", "runhist.paths", "runhist.protocol.*"},
}
NOT_IN_MODEL = {"apsw", "trio", "os", "io", "pathlib", "socket", "subprocess", "time", "random", "secrets", "threading"}
NOT_IN_MODEL |= {"logging", "shutil", "tempfile", "select", "signal", "sqlite3", "cattrs", "watchfiles"}


def module_name(path: Path) -> str:
    root = ROOT / "client" if path.is_relative_to(ROOT / "client") else ROOT
    parts = path.relative_to(root).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {module_name(path): path for path in FILES}


def exists(name: str) -> bool:
    """Whether a dotted name is one of our modules or packages (a package may lack its __init__.py)."""
    return name in MODULES or any(module.startswith(f"{name}.") for module in MODULES)


def imports_of(module: str) -> Iterator[str]:
    """Every module that a module imports, wherever in it, with relative names resolved and names in packages followed."""
    path = MODULES[module]
    package = module if path.name == "__init__.py" else module.rpartition(".")[0]
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = package.rsplit(".", node.level - 1)[0] if node.level else ""
            source = ".".join(filter(None, (above, node.module)))
            for alias in node.names:
                inner = f"{source}.{alias.name}"
                yield inner if exists(inner) else source


def is_within(module: str, part: str) -> bool:
    return module == part or module.startswith(f"{part}.")


def is_allowed(module: str, imported: str) -> bool:
    part = max((part for part in MAY_IMPORT if is_within(module, part)), key=len)
    return any(
        imported == allowed or (allowed.endswith(".*") and is_within(imported, allowed[:-2])) for allowed in MAY_IMPORT[part]
    )


@pytest.mark.parametrize("module", MODULES)
def test_a_module_imports_only_what_lies_below_it(module: str) -> None:
    ours = {name for name in imports_of(module) if name.partition(".")[0] in ("runhistd", "runhist")}
    assert {name for name in ours if not is_allowed(module, name)} == set()


@pytest.mark.parametrize("module", [name for name in MODULES if is_within(name, "runhist")])
def test_the_client_imports_nothing_but_the_standard_library(module: str) -> None:
    outside = {name.partition(".")[0] for name in imports_of(module)} - {"runhist"}
    assert outside - sys.stdlib_module_names == ({"anyio"} & outside if is_within(module, "runhist.aio") else set())


@pytest.mark.parametrize("module", [name for name in MODULES if is_within(name, "runhistd.model")])
def test_the_model_imports_nothing_with_input_output_or_a_clock(module: str) -> None:
    assert {name.partition(".")[0] for name in imports_of(module)} & NOT_IN_MODEL == set()


@pytest.mark.parametrize("module", [name for name in MODULES if is_within(name, "runhistd")])
def test_only_the_daemon_package_awaits(module: str) -> None:
    nodes = list(ast.walk(ast.parse(MODULES[module].read_text("utf-8"))))
    awaits = any(isinstance(node, ast.AsyncFunctionDef | ast.Await) for node in nodes)
    assert not (awaits or "trio" in imports_of(module)) or is_within(module, "runhistd.daemon")


@pytest.mark.parametrize("module", MODULES)
def test_only_the_store_speaks_to_sqlite(module: str) -> None:
    knows = "apsw" in {name.partition(".")[0] for name in imports_of(module)}
    assert not knows or is_within(module, "runhistd.store") or module == "runhistd.cli"  # which names its error


def test_the_table_names_only_what_exists() -> None:
    named = {name.removesuffix(".*") for part, allowed in MAY_IMPORT.items() for name in (part, *allowed)}
    assert {name for name in named if not exists(name)} == set()


def test_the_test_sees_imports_of_every_form(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "part.py"
    path.write_text(
        "import trio.lowlevel\nfrom runhistd.store import sql\n"
        "def late():\n    from .. import config\n    from . import log, absent\n"
    )
    monkeypatch.setitem(MODULES, "runhistd.daemon.part", path)
    seen = set(imports_of("runhistd.daemon.part"))
    assert seen == {"trio.lowlevel", "runhistd.store.sql", "runhistd.config", "runhistd.daemon.log", "runhistd.daemon"}
