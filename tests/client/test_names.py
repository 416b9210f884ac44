"""The public names, and what importing them costs."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import runhist


def test_every_public_name_can_be_had() -> None:
    for name in runhist._HOMES:
        assert getattr(runhist, name).__module__.startswith("runhist.")
        assert name in dir(runhist)
    with pytest.raises(AttributeError, match="nonsense"):
        _ = runhist.nonsense


def test_the_names_for_type_checkers_are_those_at_run_time() -> None:
    module = ast.parse(Path(runhist.__file__).read_text())
    block = next(node for node in module.body if isinstance(node, ast.If))
    imports = [node for node in block.body if isinstance(node, ast.ImportFrom)]
    assert {alias.asname: node.module for node in imports for alias in node.names} == runhist._HOMES


def test_importing_the_package_imports_nothing_of_it() -> None:
    script = "import sys, runhist; sys.stdout.write(' '.join(n for n in sys.modules if n.startswith('runhist.')))"
    told = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert told.stdout == ""


def test_the_client_needs_nothing_but_the_standard_library() -> None:
    script = "import runhist.client"
    environment = {"PYTHONPATH": str(Path(runhist.__file__).parent.parent)}
    told = subprocess.run([sys.executable, "-S", "-c", script], env=environment, capture_output=True, text=True, check=False)
    assert told.returncode == 0, told.stderr  # -S leaves out everything that was installed
