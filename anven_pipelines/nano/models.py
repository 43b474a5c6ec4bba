"""Where the shipped nano models lie, and whether they are what was shipped."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Final

from anven_pipelines.domain.errors import CorruptArtifact, InvalidInput

MODELS: Final = ("legacy-nano", "anven-nano")
DIGESTS: Final = "digests.json"
# In a clone beside the package, in a wheel inside it.
FOLDERS: Final = (Path(__file__).parents[2] / "data" / "nano", Path(__file__).parent / "data")


def model_folder(name: str) -> Path:
    """Return the folder of a shipped model.

    Raises:
        InvalidInput: No model has this name, or its files are not installed.
    """
    if name not in MODELS:
        message = f"there is no nano model {name!r}; known are {', '.join(MODELS)}"
        raise InvalidInput(message)
    for folder in FOLDERS:
        if (folder / name / "config.json").is_file():
            return folder / name
    message = (
        f"the files of {name} are not in {' nor in '.join(map(str, FOLDERS))}; "
        "use a full clone, or make them with `python -m anven_pipelines.nano.train`"
    )
    raise InvalidInput(message)


def weights_digest(name: str) -> str:
    """Return the SHA-256 that the weights of a shipped model's embedded engine were shipped under."""
    shipped = json.loads((model_folder(name).parent / DIGESTS).read_text(encoding="utf-8"))
    return str(shipped[f"{name}/ctranslate2/model.bin"])


def verify(name: str) -> None:
    """Compare a model's files with the digests they were shipped under.

    Raises:
        CorruptArtifact: A file is missing, unknown or changed.
    """
    folder = model_folder(name)
    shipped = json.loads((folder.parent / DIGESTS).read_text(encoding="utf-8"))
    expected = {path: digest for path, digest in shipped.items() if path.startswith(f"{name}/")}
    found = {path: digest for path, digest in digests_of(folder.parent).items() if path.startswith(f"{name}/")}
    if found != expected:
        changed = sorted(path for path in expected.keys() | found.keys() if expected.get(path) != found.get(path))
        message = (
            f"{', '.join(changed)} in {folder.parent} differ from {DIGESTS}; "
            "restore the shipped files, or retrain with `python -m anven_pipelines.nano.train`"
        )
        raise CorruptArtifact(message)


def digests_of(folder: Path) -> dict[str, str]:
    """Return the SHA-256 of every model file under a folder, by its path inside it."""
    files = sorted(path for name in MODELS for path in (folder / name).rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}
