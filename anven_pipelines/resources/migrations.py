"""The migration files of a deployment: a folder, and single files that the command line has registered."""

from __future__ import annotations

import json
import os
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import dagster as dg

from anven_pipelines.domain.errors import InvalidInput, InvalidMigration, Problem, UnknownWorkload
from anven_pipelines.migration_file import parse

if TYPE_CHECKING:
    from anven_pipelines.spec import Migration


class Declared(NamedTuple):
    """A migration and where it was declared; `folder` is where its relative paths start."""

    migration: Migration
    file: str
    folder: str


class Catalogue(NamedTuple):
    """The workloads that can run, and what is wrong with the files of those that cannot."""

    declared: dict[str, Declared]
    broken: dict[str, str]


class Migrations(dg.ConfigurableResource[None]):
    """Reads migration files afresh at each use, so that an edit counts from the next run on.

    Attributes:
        folder: Every `*.yaml` and `*.yml` in it declares one workload.
        registry: Folder of pointers to single files outside `folder`; empty where none may be registered.
    """

    folder: str
    registry: str = ""

    def catalogue(self) -> Catalogue:
        """Read every file; a broken one is reported and leaves the others alone."""
        declared: dict[str, Declared] = {}
        broken: dict[str, str] = {}
        for path in self._files():
            try:
                found = read_migration(path)
            except InvalidInput as error:
                broken[str(path)] = str(error)
                continue
            if earlier := declared.get(found.migration.workload):
                broken[str(path)] = _declared_twice(found.migration.workload, path, earlier.file)
                continue
            declared[found.migration.workload] = found
        return Catalogue(declared, broken)

    def of(self, workload: str) -> Declared:
        """Return the migration of a workload.

        Raises:
            UnknownWorkload: no readable file declares it; the files that cannot be read are named.
        """
        catalogue = self.catalogue()
        if workload in catalogue.declared:
            return catalogue.declared[workload]
        known = ", ".join(sorted(catalogue.declared)) or "none"
        broken = "".join(f"\n{text}" for text in catalogue.broken.values())
        message = f"workload {workload!r} is declared by no readable file in {self.folder}; declared: {known}{broken}"
        raise UnknownWorkload(message)

    def register(self, file: Path) -> Declared:
        """Make a file known that lies outside the folder, in place of the one registered before for its workload.

        Raises:
            InvalidMigration: the file is broken.
            InvalidInput: a file of the folder declares the same workload, or only the folder's files may run here.
        """
        found = read_migration(file)
        for path in self._watched():
            if path.resolve() == file.resolve():
                return found
        catalogue = Migrations(folder=self.folder).catalogue()
        if earlier := catalogue.declared.get(found.migration.workload):
            raise InvalidInput(_declared_twice(found.migration.workload, file, earlier.file))
        if not self.registry:
            message = (
                f"{file}: a shared deployment runs the files in {self.folder} (ANVEN_MIGRATIONS) only; put it there"
            )
            raise InvalidInput(message)
        self._point_at(file, found.migration.workload)
        return found

    def _point_at(self, file: Path, workload: str) -> None:
        registry = Path(self.registry)
        registry.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile("w", dir=registry, delete=False, suffix=".tmp") as pointer:
            json.dump({"file": str(file.resolve())}, pointer)
        os.replace(pointer.name, registry / f"{workload}.json")  # noqa: PTH105 - the atomic call by its name

    def _watched(self) -> list[Path]:
        return sorted(path for path in Path(self.folder).glob("*") if path.suffix in {".yaml", ".yml"})

    def _files(self) -> list[Path]:
        pointers = sorted(Path(self.registry).glob("*.json")) if self.registry else []
        registered = [Path(json.loads(pointer.read_text())["file"]) for pointer in pointers]
        # Once each: a file whose workload was renamed has been registered under both names.
        return list(dict.fromkeys(self._watched() + registered))


def read_migration(file: Path) -> Declared:
    """Read one migration file.

    Raises:
        InvalidMigration: with every problem found.
    """
    try:
        text = file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "its bytes are not UTF-8"
        problem = Problem("the file", "not readable", f"{reason}; a migration file (UTF-8 YAML) is needed")
        raise InvalidMigration(str(file), (problem,)) from error
    return Declared(parse(text, file=str(file)), str(file), str(file.resolve().parent))


def _declared_twice(workload: str, file: Path, earlier: str) -> str:
    return f"{file}: workload is {workload!r}, which {earlier} declares already; one file per workload is needed"
