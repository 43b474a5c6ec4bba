"""The catalogue of migration files: what is found, what is broken, what is registered."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import yaml

from anven_pipelines.domain.errors import InvalidInput, UnknownWorkload
from anven_pipelines.resources.migrations import Migrations
from tests.builders import a_migration

if TYPE_CHECKING:
    from pathlib import Path


def write(folder: Path, name: str, workload: str) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / name
    migration = a_migration(workload=workload).model_dump(
        mode="json", include={"workload", "legacy", "target", "grading"}
    )
    file.write_text(yaml.safe_dump(migration))
    return file


def migrations_in(folder: Path) -> Migrations:
    return Migrations(folder=str(folder / "migrations"), registry=str(folder / "registered"))


def test_every_file_of_the_folder_is_a_workload(tmp_path: Path) -> None:
    write(tmp_path / "migrations", "a.yaml", "one")
    write(tmp_path / "migrations", "b.yml", "two")
    (tmp_path / "migrations" / "README.md").write_text("not a migration")
    catalogue = migrations_in(tmp_path).catalogue()
    assert sorted(catalogue.declared) == ["one", "two"]
    assert catalogue.broken == {}


def test_a_folder_that_does_not_exist_holds_nothing(tmp_path: Path) -> None:
    assert migrations_in(tmp_path).catalogue() == ({}, {})


@pytest.mark.parametrize("content", [b"workload: [", b"\xff\xfe", b""])
def test_a_broken_file_is_told_and_the_rest_is_read(content: bytes, tmp_path: Path) -> None:
    write(tmp_path / "migrations", "a.yaml", "one")
    broken = tmp_path / "migrations" / "broken.yaml"
    broken.write_bytes(content)
    catalogue = migrations_in(tmp_path).catalogue()
    assert list(catalogue.declared) == ["one"]
    assert list(catalogue.broken) == [str(broken)]


def test_one_workload_in_two_files_is_told_with_both_names(tmp_path: Path) -> None:
    write(tmp_path / "migrations", "a.yaml", "one")
    write(tmp_path / "migrations", "b.yaml", "one")
    (message,) = migrations_in(tmp_path).catalogue().broken.values()
    assert "b.yaml: workload is 'one', which" in message
    assert "a.yaml declares already" in message


def test_an_edit_counts_at_once(tmp_path: Path) -> None:
    file = write(tmp_path / "migrations", "a.yaml", "one")
    migrations = migrations_in(tmp_path)
    assert migrations.of("one").migration.sign_off.quality_margin == 0.03
    file.write_text(file.read_text() + "sign_off: {quality_margin: 0.01}\n")
    assert migrations.of("one").migration.sign_off.quality_margin == 0.01


def test_an_unknown_workload_is_answered_with_the_known_ones_and_the_broken_files(tmp_path: Path) -> None:
    write(tmp_path / "migrations", "a.yaml", "one")
    (tmp_path / "migrations" / "broken.yaml").write_text("workload: [")
    with pytest.raises(UnknownWorkload, match=r"declared: one\n.*broken.yaml: line 1"):
        migrations_in(tmp_path).of("two")


def test_a_file_elsewhere_is_known_once_registered(tmp_path: Path) -> None:
    file = write(tmp_path / "elsewhere", "m.yaml", "far")
    migrations = migrations_in(tmp_path)
    migrations.register(file)
    assert migrations.of("far").folder == str(file.parent)
    moved = write(tmp_path / "another", "m.yaml", "far")
    migrations.register(moved)
    assert migrations.of("far").file == str(moved.resolve())


def test_a_registered_file_may_rename_its_workload(tmp_path: Path) -> None:
    file = write(tmp_path / "elsewhere", "m.yaml", "far")
    migrations = migrations_in(tmp_path)
    migrations.register(file)
    write(tmp_path / "elsewhere", "m.yaml", "near")
    migrations.register(file)
    catalogue = migrations.catalogue()
    assert (set(catalogue.declared), catalogue.broken) == ({"near"}, {})


def test_a_registered_file_that_is_gone_is_told(tmp_path: Path) -> None:
    file = write(tmp_path / "elsewhere", "m.yaml", "far")
    migrations = migrations_in(tmp_path)
    migrations.register(file)
    file.unlink()
    assert "the file is not readable" in next(iter(migrations.catalogue().broken.values()))


def test_a_file_of_the_folder_needs_no_registration(tmp_path: Path) -> None:
    file = write(tmp_path / "migrations", "a.yaml", "one")
    migrations_in(tmp_path).register(file)
    assert not (tmp_path / "registered").exists()


def test_a_file_may_not_take_the_name_of_a_watched_workload(tmp_path: Path) -> None:
    write(tmp_path / "migrations", "a.yaml", "one")
    file = write(tmp_path / "elsewhere", "m.yaml", "one")
    with pytest.raises(InvalidInput, match=r"a.yaml declares already"):
        migrations_in(tmp_path).register(file)


def test_where_no_file_may_be_registered_only_the_folder_counts(tmp_path: Path) -> None:
    shared = Migrations(folder=str(tmp_path / "migrations"))
    inside = write(tmp_path / "migrations", "a.yaml", "one")
    outside = write(tmp_path / "elsewhere", "b.yaml", "two")
    assert shared.register(inside).migration.workload == "one"
    with pytest.raises(InvalidInput, match=r"b\.yaml: a shared deployment runs the files in .*migrations"):
        shared.register(outside)
