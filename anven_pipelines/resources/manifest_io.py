"""Passes manifests between assets: pointers are stored, rows never travel through Dagster.

Without `from __future__ import annotations`: Dagster 1.13 does not see a `ResourceDependency` in quotes.
"""

import typing
from collections.abc import Mapping

import dagster as dg

from anven_pipelines.domain.errors import MissingInput
from anven_pipelines.domain.manifest import Manifest
from anven_pipelines.resources.artifact_store import ArtifactStore


class ManifestIOManager(dg.ConfigurableIOManager):
    """Stores each asset's current manifest per partition.

    An input takes the shape of its annotation: `Manifest` for one partition, `dict[str, Manifest]` for the
    partitions of a dependency that exist. Without an annotation, several upstream partitions give a dict.

    Dagster maps an asset check to all partitions of its asset; one that asks for a `Manifest` gets the run's.
    """

    artifacts: dg.ResourceDependency[ArtifactStore]

    def handle_output(self, context: dg.OutputContext, obj: object) -> None:
        """Point the asset's partition at the manifest; None leaves it where it points."""
        if obj is None:
            return
        asset = context.asset_key.to_user_string()
        partitions = list(context.asset_partition_keys) if context.has_asset_partitions else [None]
        for partition, manifest in _by_partition(asset, partitions, obj).items():
            self.artifacts.save_manifest(asset, partition, manifest)

    def load_input(self, context: dg.InputContext) -> Manifest | dict[str, Manifest]:
        """Return the manifest, or one per existing partition, that the upstream asset points at.

        Raises:
            MissingInput: a single manifest is needed and the upstream has none, or the run names no partition.
        """
        asset = context.asset_key.to_user_string()
        if not context.has_asset_partitions:
            return self._load(asset, None)
        partitions = context.asset_partition_keys
        wanted = context.dagster_type.typing_type
        if wanted is Manifest and len(partitions) != 1:
            return self._load(asset, _partition_of_run(asset, context))
        if len(partitions) == 1 and not _is_mapping(wanted):
            return self._load(asset, partitions[0])
        found = {partition: self.artifacts.load_manifest(asset, partition) for partition in partitions}
        return {partition: manifest for partition, manifest in found.items() if manifest is not None}

    def _load(self, asset: str, partition: str | None) -> Manifest:
        if (manifest := self.artifacts.load_manifest(asset, partition)) is None:
            where = "" if partition is None else f" for partition {partition}"
            option = "" if partition is None else f" --partition {partition}"
            message = (
                f"{asset} has no manifest{where}, which this step needs; materialise it first, in the UI or with "
                f"`dg launch --assets {asset}{option}`"
            )
            raise MissingInput(message)
        return manifest


def _by_partition(asset: str, partitions: typing.Sequence[str | None], obj: object) -> Mapping[str | None, Manifest]:
    """Return the manifest of each partition; a run over several must give them by name."""
    if isinstance(obj, Manifest) and len(partitions) == 1:
        return {partitions[0]: obj}
    if isinstance(obj, Mapping) and all(isinstance(manifest, Manifest) for manifest in obj.values()):
        if strangers := sorted(map(str, obj.keys() - set(partitions))):
            message = f"{asset} returned manifests for {', '.join(strangers)}, which the run does not materialise"
            raise ValueError(message)
        return obj
    wanted = "a Manifest" if len(partitions) == 1 else f"a dict of Manifest by partition ({len(partitions)} partitions)"
    message = f"{asset} returned a {type(obj).__name__}; {wanted} is needed: publish rows with ArtifactStore.publish"
    raise TypeError(message)


def _partition_of_run(asset: str, context: dg.InputContext) -> str:
    if context.has_partition_key and context.partition_key in context.asset_partition_keys:
        return context.partition_key
    message = f"this step needs one partition of {asset} and the run names none; run it together with {asset}, for one"
    raise MissingInput(message)


def _is_mapping(annotation: object) -> bool:
    origin = typing.get_origin(annotation) or annotation
    return isinstance(origin, type) and issubclass(origin, Mapping)
