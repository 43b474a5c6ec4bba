"""What an artifact store does wherever its files lie; run on a local folder, in memory and on S3."""

from __future__ import annotations

from datetime import UTC, date, datetime, timedelta
from typing import TYPE_CHECKING

import polars as pl
import pytest
from polars.testing import assert_frame_equal

from anven_pipelines.domain.errors import CorruptArtifact, InvalidInput, MissingInput
from anven_pipelines.domain.table import UTC_TIMESTAMP, Column, Table
from anven_pipelines.resources.artifact_store import LabelledFrame

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from anven_pipelines.domain.manifest import Manifest
    from anven_pipelines.resources.artifact_store import ArtifactStore

CALLS = Table(
    "calls",
    (
        Column("id", pl.String, "Name of the call."),
        Column("ts", UTC_TIMESTAMP, "When it was made."),
        Column("day", pl.Date, "Its day."),
        Column("tokens", pl.Int64, "How many it took."),
        Column("cost_usd", pl.Float64, "What it cost."),
        Column("ok", pl.Boolean, "Whether it was answered."),
        Column("raw", pl.Binary, "Its bytes as logged."),
    ),
)
ODD_NAMES = (
    "",
    ".",
    "..",
    "../up",
    "a/b",
    "a|b",
    "100%",
    "%41",
    "ü mlaut",
    "*?[x]",
    "~",
    "~all",
    "current",
    "x" * 300,
    "x" * 301,
)


def calls(*ids: str) -> pl.DataFrame:
    return pl.DataFrame({"id": list(ids)}).with_columns(
        ts=pl.lit(datetime(2026, 11, 20, 8, 30, 0, 123456, tzinfo=UTC)) + pl.int_range(pl.len()) * timedelta(seconds=1),
        day=pl.lit(date(2026, 11, 20)),
        tokens=pl.int_range(pl.len()),
        cost_usd=pl.lit(None, dtype=pl.Float64),
        ok=pl.lit(value=True),
        raw=pl.lit(b"\xff\x00raw"),
    )


class ArtifactCases:
    """Inherited by a test class that provides the `artifacts` fixture."""

    def damage(self, artifacts: ArtifactStore, uri: str, data: bytes | None) -> None:
        """Replace a file behind the store's back; None removes it."""
        if data is None:
            artifacts.folder._files.rm_file(artifacts.folder._path(uri))
        else:
            artifacts.folder._files.pipe_file(artifacts.folder._path(uri), data)

    def test_published_rows_come_back_in_order_with_their_types(self, artifacts: ArtifactStore) -> None:
        manifest = artifacts.publish(CALLS, [calls("b", "a"), LabelledFrame(calls("c"), {"source": "log.jsonl"})])

        assert_frame_equal(artifacts.read(manifest), CALLS.conform(pl.concat([calls("b", "a"), calls("c")])))
        assert (manifest.table, manifest.rows) == ("calls", 3)
        assert [part.labels for part in manifest.parts] == [{}, {"source": "log.jsonl"}]

    def test_a_manifest_carries_inputs_and_facts(self, artifacts: ArtifactStore) -> None:
        manifest = artifacts.publish(CALLS, [calls("a")], inputs={"request_log": "d1"}, facts={"seed": 7})

        assert (manifest.inputs, manifest.facts) == ({"request_log": "d1"}, {"seed": 7})

    def test_a_missing_column_becomes_null(self, artifacts: ArtifactStore) -> None:
        manifest = artifacts.publish(CALLS, [pl.DataFrame({"id": ["a"]})])

        assert artifacts.read(manifest)["tokens"].to_list() == [None]

    def test_no_frames_give_an_empty_table_that_can_be_queried(self, artifacts: ArtifactStore) -> None:
        manifest = artifacts.publish(CALLS, [])

        assert_frame_equal(artifacts.read(manifest), CALLS.empty())
        assert artifacts.query("SELECT count(*) AS n FROM calls", calls=manifest)["n"].to_list() == [0]

    def test_a_manifest_without_parts_is_an_empty_table(self, artifacts: ArtifactStore) -> None:
        manifest = artifacts.publish(CALLS, []).model_copy(update={"parts": ()})

        assert_frame_equal(artifacts.read(manifest), CALLS.empty())
        assert_frame_equal(artifacts.query("SELECT * FROM calls", calls=manifest), CALLS.empty())

    def test_equal_content_is_stored_once(self, artifacts: ArtifactStore) -> None:
        first = artifacts.publish(CALLS, [calls("a"), calls("b")])
        second = artifacts.publish(CALLS, [calls("a"), calls("b")])

        assert second == first
        assert len(artifacts.folder.names("parts/calls")) == 2

    def test_frames_are_taken_one_at_a_time(self, artifacts: ArtifactStore) -> None:
        stored: list[int] = []

        def frames() -> Iterator[pl.DataFrame]:
            for name in ("a", "b", "c"):
                stored.append(len(artifacts.folder.names("parts/calls")))
                yield calls(name)

        artifacts.publish(CALLS, frames())
        assert stored == [0, 1, 2]

    @pytest.mark.parametrize("value", [float("nan"), float("inf")])
    def test_a_number_that_is_none_is_refused(self, artifacts: ArtifactStore, value: float) -> None:
        with pytest.raises(InvalidInput, match=r"calls\.cost_usd holds NaN or infinity; write NULL"):
            artifacts.publish(CALLS, [calls("a").with_columns(cost_usd=pl.lit(value))])

    @pytest.mark.parametrize(
        ("damaged", "found"),
        [
            (lambda data: None, "found no file"),
            (lambda data: b"", "found sha256 e3b0c442"),
            (lambda data: data[:-1], "found sha256"),
            (lambda data: data[:40] + bytes([data[40] ^ 1]) + data[41:], "found sha256"),
        ],
        ids=["missing", "empty", "cut", "one bit"],
    )
    def test_a_damaged_part_is_never_read(
        self, artifacts: ArtifactStore, damaged: Callable[[bytes], bytes | None], found: str
    ) -> None:
        manifest = artifacts.publish(CALLS, [calls("a"), calls("b")])
        part = manifest.parts[1]
        data = artifacts.folder.read(part.uri)
        assert data is not None
        self.damage(artifacts, part.uri, damaged(data))

        with pytest.raises(CorruptArtifact) as when_read:
            artifacts.read(manifest)
        with pytest.raises(CorruptArtifact) as when_queried:
            artifacts.query("SELECT 1 FROM t", t=manifest)
        for text in (str(when_read.value), str(when_queried.value)):
            assert part.sha256 in text
            assert artifacts.location(part.uri) in text
            assert found in text
            assert "materialise the asset that published it again" in text

        assert artifacts.publish(CALLS, [calls("a"), calls("b")]) == manifest  # as the message says
        assert artifacts.read(manifest).height == 2

    def test_a_part_of_another_schema_is_not_read(self, artifacts: ArtifactStore) -> None:
        manifest = artifacts.publish(CALLS, [calls("a")])
        columns = {**manifest.columns, "tokens": "Float64"}

        with pytest.raises(CorruptArtifact, match="expected columns"):
            artifacts.read(manifest.model_copy(update={"columns": columns}))

    def test_sql_joins_several_manifests(self, artifacts: ArtifactStore) -> None:
        left = artifacts.publish(CALLS, [calls("a", "b"), calls("c")])
        right = artifacts.publish(CALLS, [calls("b", "c", "d")])

        joined = artifacts.query('SELECT id FROM legacy JOIN "order" USING (id) ORDER BY id', legacy=left, order=right)

        assert joined["id"].to_list() == ["b", "c"]

    @pytest.mark.parametrize(
        ("sql", "parameters"),
        [("SELECT id FROM t WHERE id = ?", ["b"]), ("SELECT id FROM t WHERE id = $wanted", {"wanted": "b"})],
    )
    def test_sql_takes_parameters(
        self, artifacts: ArtifactStore, sql: str, parameters: Sequence[str] | Mapping[str, str]
    ) -> None:
        manifest = artifacts.publish(CALLS, [calls("a", "b")])

        assert artifacts.query(sql, parameters, t=manifest)["id"].to_list() == ["b"]

    def test_sql_keeps_the_types(self, artifacts: ArtifactStore) -> None:
        manifest = artifacts.publish(CALLS, [calls("a", "b")])

        assert_frame_equal(artifacts.query("SELECT * FROM t ORDER BY id", t=manifest), artifacts.read(manifest))

    def test_a_document_comes_back_and_is_replaced_whole(self, artifacts: ArtifactStore) -> None:
        artifacts.write_json("verdict/support answers", {"verdict": "INCONCLUSIVE", "needed": 1208})
        where = artifacts.write_json("verdict/support answers.json", {"b": [1, None], "a": "ü"})

        assert artifacts.read_json("verdict/support answers") == {"a": "ü", "b": [1, None]}
        assert where.endswith("documents/verdict/support%20answers.json")
        assert artifacts.folder.read("documents/verdict/support%20answers.json") == '{"a":"ü","b":[1,null]}'.encode()

    def test_a_document_that_was_never_written_is_missing_input(self, artifacts: ArtifactStore) -> None:
        with pytest.raises(MissingInput, match=r"no document 'verdict' at .*documents/verdict\.json; materialise"):
            artifacts.read_json("verdict")

    def test_a_damaged_document_is_reported(self, artifacts: ArtifactStore) -> None:
        artifacts.write_json("verdict", {})
        self.damage(artifacts, "documents/verdict.json", b'{"verdict": "G')

        with pytest.raises(CorruptArtifact, match="expected JSON"):
            artifacts.read_json("verdict")

    def test_a_partition_points_at_its_newest_manifest_and_keeps_the_old_ones(self, artifacts: ArtifactStore) -> None:
        old = artifacts.publish(CALLS, [calls("a")])
        new = artifacts.publish(CALLS, [calls("a", "b")])
        artifacts.save_manifest("golden_dataset", "support", old)
        artifacts.save_manifest("golden_dataset", "support", new)

        assert artifacts.load_manifest("golden_dataset", "support") == new
        assert artifacts.load_manifest("golden_dataset", "support", digest=old.digest) == old

    def test_what_was_never_saved_is_none(self, artifacts: ArtifactStore) -> None:
        artifacts.save_manifest("golden_dataset", "support", artifacts.publish(CALLS, []))

        assert artifacts.load_manifest("golden_dataset", None) is None
        assert artifacts.load_manifest("golden_dataset", "billing") is None
        assert artifacts.load_manifest("golden_dataset", "support", digest="0" * 64) is None
        assert artifacts.load_manifest("scores", "support") is None

    @pytest.mark.parametrize("data", [b"", b"{}", b"\xff"])
    def test_a_damaged_manifest_is_reported(self, artifacts: ArtifactStore, data: bytes) -> None:
        artifacts.save_manifest("scores", None, artifacts.publish(CALLS, []))
        self.damage(artifacts, "manifests/scores/~all/current.json", data)

        with pytest.raises(CorruptArtifact, match="expected a manifest"):
            artifacts.load_manifest("scores", None)

    def test_a_manifest_under_the_wrong_digest_is_reported(self, artifacts: ArtifactStore) -> None:
        manifest = artifacts.publish(CALLS, [calls("a")])
        artifacts.save_manifest("scores", None, manifest)
        forged = manifest.model_copy(update={"facts": {"seed": 1}})
        uri = f"manifests/scores/~all/{manifest.digest}.json"
        self.damage(artifacts, uri, forged.model_dump_json().encode())

        with pytest.raises(CorruptArtifact, match=f"expected digest {manifest.digest}, found digest {forged.digest}"):
            artifacts.load_manifest("scores", None, digest=manifest.digest)

    def test_odd_partition_names_stay_apart(self, artifacts: ArtifactStore) -> None:
        manifest = artifacts.publish(CALLS, [])
        named: dict[str | None, Manifest] = {
            name: manifest.model_copy(update={"facts": {"name": name}}) for name in (None, *ODD_NAMES)
        }
        for name, its_manifest in named.items():
            artifacts.save_manifest("odd", name, its_manifest)

        assert {name: artifacts.load_manifest("odd", name) for name in named} == named
        assert artifacts.load_manifest("up", None) is None

    def test_a_checkpoint_keeps_what_was_appended(self, artifacts: ArtifactStore) -> None:
        checkpoint = artifacts.checkpoint(CALLS, "target answers/d1")
        assert_frame_equal(checkpoint.load(), CALLS.empty())

        checkpoint.append(calls("a", "b"))
        checkpoint.append(calls("c"))
        checkpoint.append(calls("c"))
        checkpoint.append(calls())

        assert sorted(artifacts.checkpoint(CALLS, "target answers/d1").load()["id"]) == ["a", "b", "c"]
        assert artifacts.checkpoint(CALLS, "target answers/d2").load().is_empty()

    def test_a_damaged_checkpoint_part_is_set_aside(
        self, artifacts: ArtifactStore, caplog: pytest.LogCaptureFixture
    ) -> None:
        checkpoint = artifacts.checkpoint(CALLS, "d1")
        checkpoint.append(calls("a"))
        (damaged,) = artifacts.folder.names("checkpoints/d1")
        checkpoint.append(calls("b"))
        self.damage(artifacts, f"checkpoints/d1/{damaged}", b"PAR1 and then the power went")
        self.damage(artifacts, "checkpoints/d1/notes.txt", b"not a part")

        assert checkpoint.load()["id"].to_list() == ["b"]
        assert "was set aside: its bytes do not match its digest" in caplog.text
        assert f"{damaged}.corrupt" in artifacts.folder.names("checkpoints/d1")

        checkpoint.append(calls("a"))
        assert sorted(checkpoint.load()["id"]) == ["a", "b"]

    def test_a_checkpoint_of_another_table_is_set_aside(
        self, artifacts: ArtifactStore, caplog: pytest.LogCaptureFixture
    ) -> None:
        other = Table("calls", (Column("tokens", pl.String, "Written by an older release."),))
        artifacts.checkpoint(other, "d1").append(pl.DataFrame({"tokens": ["many"]}))

        assert artifacts.checkpoint(CALLS, "d1").load().is_empty()
        assert "it does not hold the table calls" in caplog.text
