"""The prompts that the target model is asked with."""

import dagster as dg

from anven_pipelines.assets.materialization import DOCUMENT, OWNERS, definition_metadata, publish_document, result
from anven_pipelines.assets.partitions import workloads
from anven_pipelines.domain.manifest import Manifest
from anven_pipelines.domain.prompts import carry_over
from anven_pipelines.resources.artifact_store import ArtifactStore
from anven_pipelines.resources.mlflow_tracking import MlflowTracking


@dg.asset(
    group_name="adapt",
    kinds={"json"},
    owners=OWNERS,
    code_version="1",
    partitions_def=workloads,
    metadata=definition_metadata(DOCUMENT),
)
def adapted_prompt(
    context: dg.AssetExecutionContext, golden_dataset: Manifest, artifacts: ArtifactStore, tracking: MlflowTracking
) -> dg.MaterializeResult[Manifest]:
    """The legacy prompt carried over unchanged: an identity step that claims no gain."""
    prompt = carry_over()
    document = prompt.model_dump_json()
    manifest = publish_document(artifacts, document, inputs={"golden_dataset": golden_dataset.digest})
    return result(
        context,
        manifest,
        tracking=tracking,
        metadata={"strategy": prompt.strategy, "prompt": dg.MetadataValue.json(prompt.model_dump(mode="json"))},
        params={"strategy": prompt.strategy, "version": prompt.version},
        documents={"prompt.json": document},
    )
