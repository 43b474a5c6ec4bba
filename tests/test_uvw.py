"""`./uvw` starts a uv that is recent enough, or says in one line what is missing."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

UVW = Path(__file__).resolve().parents[1] / "uvw"
COREUTILS = ("cut", "dirname", "sh")

OLD_UV = 'echo "uv 0.8.1 (0123abc 2025-07-22)"'
NEW_UV = '[ "$1" = --version ] && echo "uv 0.14.0 (0123abc 2027-01-01)" || printf "<%s>" "$@"'
OLD_PYTHON = '[ "$1" = --version ] && echo "Python 3.9.2"'
NO_VENV = 'case "$2" in *version_info*) exit 0 ;; *) exit 1 ;; esac'


def run(folder: Path, *arguments: str, **programs: str) -> subprocess.CompletedProcess[str]:
    """Run a copy of uvw where only the given programs are on PATH."""
    tools = folder / "bin"
    tools.mkdir()
    for name in COREUTILS:
        (tools / name).symlink_to(shutil.which(name) or f"{name} is not on PATH")
    for name, body in programs.items():
        (tools / name).write_text(f"#!/bin/sh\n{body}\n", encoding="utf-8")
        (tools / name).chmod(0o755)
    shutil.copy(UVW, folder)
    return subprocess.run(
        ["./uvw", *arguments],
        cwd=folder,
        env={"PATH": str(tools)},
        capture_output=True,
        text=True,
        check=False,
        timeout=30,
    )


def test_a_recent_uv_on_path_is_started_with_the_arguments_as_they_are(tmp_path: Path) -> None:
    done = run(tmp_path, "run", "a b", "", uv=NEW_UV)

    assert (done.returncode, done.stdout, done.stderr) == (0, "<run><a b><>", "")


def test_an_own_uv_is_used_where_the_one_on_path_is_too_old(tmp_path: Path) -> None:
    own = tmp_path / ".uv" / "bin" / "uv"
    own.parent.mkdir(parents=True)
    own.write_text(f"#!/bin/sh\n{NEW_UV}\n", encoding="utf-8")
    own.chmod(0o755)

    assert run(tmp_path, "sync", uv=OLD_UV).stdout == "<sync>"


@pytest.mark.parametrize(
    ("programs", "reason"),
    [
        ({}, "neither uv nor python3 is on PATH"),
        ({"uv": OLD_UV}, "neither uv nor python3 is on PATH"),
        ({"python3": OLD_PYTHON}, "Python 3.9.2 is on PATH; python3 3.11 or newer is needed"),
        ({"python3": NO_VENV}, "python3 has no venv module"),
    ],
)
def test_what_is_missing_is_said_in_one_line(programs: dict[str, str], reason: str, tmp_path: Path) -> None:
    done = run(tmp_path, "sync", **programs)

    assert done.returncode == 2
    assert done.stderr.startswith(f"uvw: {reason}")
    assert done.stderr.count("\n") == 1
