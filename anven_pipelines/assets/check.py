"""A gate of an asset, declared once: what Dagster shows before it ran, and what it found."""

from dataclasses import dataclass
from typing import Any

import dagster as dg


@dataclass(frozen=True)
class Check:
    """One check of an asset.

    Attributes:
        asset: Name of the asset.
        name: Name of the check.
        description: What holds when it passes.
        blocking: Whether its failure stops what is downstream; else it warns.
        partitions_def: Set where the check's history is wanted per partition.
    """

    asset: str
    name: str
    description: str
    blocking: bool = False
    partitions_def: dg.PartitionsDefinition[str] | None = None

    @property
    def spec(self) -> dg.AssetCheckSpec:
        """The declaration, for the asset's decorator."""
        return dg.AssetCheckSpec(
            self.name,
            asset=self.asset,
            blocking=self.blocking,
            description=self.description,
            partitions_def=self.partitions_def,
        )

    def result(
        self,
        *,
        passed: bool,
        found: str,
        **metadata: Any,  # noqa: ANN401 - what Dagster takes as metadata
    ) -> dg.AssetCheckResult:
        """Say whether it passed and what was found."""
        return dg.AssetCheckResult(
            check_name=self.name,
            asset_key=dg.AssetKey(self.asset),
            passed=passed,
            severity=dg.AssetCheckSeverity.ERROR if self.blocking else dg.AssetCheckSeverity.WARN,
            description=found,
            metadata=metadata,
        )
