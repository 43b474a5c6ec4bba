"""What a search for a better prompt needs of the world: the target, the judge, the strategies that have tools.

Without `from __future__ import annotations`: Dagster 1.13 does not see a `ResourceDependency` in quotes.
"""

import time
from collections.abc import Callable, Mapping, Sequence

import dagster as dg
import polars as pl

from anven_pipelines.domain.errors import InvalidInput
from anven_pipelines.domain.inference import work_key
from anven_pipelines.domain.prompt_adaptation import Adaptation, Search
from anven_pipelines.domain.prompt_conversion import TargetProfile
from anven_pipelines.domain.prompt_search import Racing, RandomSearch
from anven_pipelines.domain.prompt_split import split_items
from anven_pipelines.domain.prompt_strategy import Strategy
from anven_pipelines.domain.prompt_template import PromptTemplate
from anven_pipelines.resources.artifact_store import ArtifactStore
from anven_pipelines.resources.batch_inference import BatchInference
from anven_pipelines.resources.judge import Judge
from anven_pipelines.spec import Migration
from anven_pipelines.spec_target import RecordedTarget


class PromptSearch(dg.ConfigurableResource[None]):
    """Looks for prompts that the target takes better than the legacy ones.

    Attributes:
        artifacts: Keeps every answer, so that nothing is asked twice.
        batch_inference: Asks the target.
        judge: Scores what needs a judge.
        prompt_ops: The command llama-prompt-ops, or a python that has it.
    """

    artifacts: dg.ResourceDependency[ArtifactStore]
    batch_inference: dg.ResourceDependency[BatchInference]
    judge: dg.ResourceDependency[Judge]
    prompt_ops: str = ""

    def search(
        self,
        context: dg.AssetExecutionContext,
        migration: Migration,
        golden: pl.DataFrame,
        templates: Sequence[PromptTemplate],
        *,
        look: Callable[[str], int],
    ) -> Adaptation:
        """Look for better prompts and prove them.

        Args:
            context: Gets messages on what goes on.
            migration: What is declared.
            golden: GOLDEN rows; only open ones are asked.
            templates: The legacy prompts.
            look: Writes down a look at the validation items, see `Search`.

        Raises:
            InvalidInput: there is nothing to search on, a strategy cannot run, or the target refuses what it is asked.
            UnavailableService: the target or the reflection model does not answer; what was answered is kept.
        """
        adaptation, target = migration.prompt, migration.target
        if isinstance(target, RecordedTarget):
            message = "recorded answers cannot be asked with another prompt; a target that can be asked is needed"
            raise InvalidInput(message)
        split = split_items(golden, templates, validation=adaptation.validation, seed=adaptation.seed)
        # Whose answers they are; what was asked stands in the id of each.
        key = work_key(golden_digest="", prompt_digest="search", target=target, epoch="")
        return Search(
            migration=migration,
            target=target,
            split=split,
            strategies=self._strategies(migration),
            profile=TargetProfile(),
            ask=self.batch_inference.asker(context, target, key=key),
            grade=lambda answers, rows: self.judge.grade(migration.grading, answers, rows),
            look=look,
            tell=context.log.info,
            clock=time.monotonic,
        ).run()

    def _strategies(self, migration: Migration) -> Mapping[str, Strategy]:
        """Return who searches, in the declared order."""
        adaptation = migration.prompt
        mode = adaptation.mode_for(migration.risk)
        if mode not in {"minimal", "full"}:
            return {}
        made: dict[str, Callable[[], Strategy]] = {
            "racing": lambda: Racing(mode=mode),
            "random": lambda: RandomSearch(mode=mode),
        }
        return {name: made[name]() for name in adaptation.strategies}
