"""What a search for a better prompt needs of the world: the target, the judge, the strategies that have tools.

Without `from __future__ import annotations`: Dagster 1.13 does not see a `ResourceDependency` in quotes.
"""

import os
import time
from collections.abc import Callable, Mapping, Sequence
from datetime import timedelta
from typing import Final

import dagster as dg
import polars as pl

from anven_pipelines.domain.errors import InvalidInput
from anven_pipelines.domain.inference import ANSWERS, work_key
from anven_pipelines.domain.prompt_adaptation import Search
from anven_pipelines.domain.prompt_declared import Declared
from anven_pipelines.domain.prompt_looks import Looks
from anven_pipelines.domain.prompt_report import Adaptation
from anven_pipelines.domain.prompt_search import Racing, RandomSearch
from anven_pipelines.domain.prompt_split import split_items
from anven_pipelines.domain.prompt_strategy import Strategy
from anven_pipelines.domain.prompt_target import TargetProfile
from anven_pipelines.domain.prompt_template import PromptTemplate
from anven_pipelines.resources.artifact_store import ArtifactStore
from anven_pipelines.resources.batch_inference import BatchInference
from anven_pipelines.resources.checkpoint import Remembered
from anven_pipelines.resources.environment import api_key
from anven_pipelines.resources.gepa_strategy import GepaStrategy, load_gepa
from anven_pipelines.resources.judge import Judge
from anven_pipelines.resources.prompt_ops import PromptOpsStrategy
from anven_pipelines.resources.prompt_ops_process import command_of, require_installed
from anven_pipelines.resources.reflector import ReflectionBudget, Reflector, reflection_key
from anven_pipelines.spec import Migration
from anven_pipelines.spec_prompt import StrategyName  # noqa: TC001 - no quoted annotations in this file
from anven_pipelines.spec_target import EndpointTarget, RecordedTarget

PROMPT_OPS_TIME: Final = timedelta(minutes=30)


class PromptSearch(dg.ConfigurableResource[None]):
    """Looks for prompts that the target takes better than the legacy ones.

    Attributes:
        artifacts: Keeps every answer, so that nothing is asked twice.
        batch_inference: Asks the target.
        judge: Scores what needs a judge.
    """

    artifacts: dg.ResourceDependency[ArtifactStore]
    batch_inference: dg.ResourceDependency[BatchInference]
    judge: dg.ResourceDependency[Judge]

    def require_runnable(self, migration: Migration) -> None:
        """Find what the declared strategies lack before anything is spent.

        Raises:
            InvalidInput: a key, a package or an environment is missing, or the target cannot be asked that way.
        """
        self._strategies(migration)

    def search(
        self,
        context: dg.AssetExecutionContext,
        migration: Migration,
        golden: pl.DataFrame,
        templates: Sequence[PromptTemplate],
        *,
        rewrites: Mapping[str, Declared],
        looks: Looks,
        epoch: str = "",
    ) -> Adaptation:
        """Look for better prompts and prove them.

        Args:
            context: Gets messages on what goes on.
            migration: What is declared.
            golden: GOLDEN rows; only open ones are asked.
            templates: The legacy prompts.
            rewrites: What the declared rewrites make of the golden calls, by template.
            looks: What the workload's searches were shown, and what was looked at to prove a gain.
            epoch: Answers are reused within it, refusals too; another value asks afresh, which is a further look.

        Raises:
            InvalidInput: there is nothing to search on, a strategy lacks something, or the target refuses what it
                is asked.
            UnavailableService: the target does not answer, or no strategy could search; what was answered is kept.
            StaleInput: another run has searched on what was to prove the gain.
        """
        adaptation, target = migration.prompt, migration.target
        if isinstance(target, RecordedTarget):
            message = "recorded answers cannot be asked with another prompt; a target that can be asked is needed"
            raise InvalidInput(message)
        split = split_items(golden, templates, validation=adaptation.validation, searched=looks.searched())
        # Whose answers they are; what was asked stands in the id of each.
        key = work_key(golden_digest="", prompt_digest="search", target=target, epoch=epoch)
        return Search(
            migration=migration,
            target=target,
            split=split,
            rewrites=rewrites,
            strategies=self._strategies(migration),
            profile=TargetProfile(**adaptation.form.model_dump(exclude={"switches_reasoning"})),
            ask=self.batch_inference.asker(context, target, key=key),
            grade=lambda answers, rows: self.judge.grade(migration.grading, answers, rows),
            looks=looks,
            tell=context.log.info,
            clock=time.monotonic,
            epoch=epoch,
        ).run()

    def _strategies(self, migration: Migration) -> Mapping[str, Strategy]:
        """Return who searches, in the declared order.

        Raises:
            InvalidInput: one of them cannot run; none has asked anything.
        """
        adaptation = migration.prompt
        mode = adaptation.mode_for(migration.risk)
        if mode not in {"minimal", "full"}:
            return {}
        reasons = adaptation.form.switches_reasoning
        made: Mapping[StrategyName, Callable[[], Strategy]] = {
            "racing": lambda: Racing(mode=mode, reasons=reasons),
            "random": lambda: RandomSearch(mode=mode, reasons=reasons),
            "gepa": lambda: self._gepa(migration),
            "prompt_ops": lambda: self._prompt_ops(migration),
        }
        return {name: made[name]() for name in adaptation.strategies}

    def _gepa(self, migration: Migration) -> Strategy:
        budget = migration.prompt.budget.calls // max(1, len(migration.prompt.strategies))
        load_gepa()
        return GepaStrategy(reflector=self._reflector(migration), metric_calls=budget)

    def _prompt_ops(self, migration: Migration) -> Strategy:
        target = migration.target
        if not isinstance(target, EndpointTarget):
            message = (
                f"the strategy prompt_ops asks the target by itself and needs `engine: endpoint`, found {target.engine}"
            )
            raise InvalidInput(message)
        command = command_of(os.environ)
        require_installed(command)
        # What it may really ask is the trial's to say, which counts its calls with all others.
        budget = ReflectionBudget(calls=migration.prompt.budget.calls)
        declared = migration.prompt.prompt_ops
        longest = declared.timeout or migration.prompt.budget.time or PROMPT_OPS_TIME
        return PromptOpsStrategy(
            command=command,
            target=lambda: self._client(target, budget, asks_anew=False),
            proposer=self._reflector(migration),
            timeout_s=longest.total_seconds(),
            strategy=declared.strategy,
            settings=declared.settings,
            items=declared.items,
            max_tokens=declared.max_tokens,
        )

    def _reflector(self, migration: Migration) -> Callable[[], Reflector]:
        reflection = migration.prompt.reflection
        if reflection is None:
            message = "prompt.reflection is needed: a model larger than the target"
            raise InvalidInput(message)
        endpoint = EndpointTarget(
            engine="endpoint",
            model=reflection.model,
            url=reflection.url,
            api_key_env=reflection.api_key_env,
            params=reflection.params,
            timeout=reflection.timeout,
            max_attempts=reflection.max_attempts,
            price=reflection.price,
        )
        api_key(endpoint.api_key_env, of=f"the reflection model {endpoint.model!r}")
        budget = ReflectionBudget(calls=reflection.calls, tokens=reflection.tokens, usd=reflection.usd)
        return lambda: self._client(endpoint, budget)

    def _client(self, endpoint: EndpointTarget, budget: ReflectionBudget, *, asks_anew: bool = True) -> Reflector:
        kept = Remembered(self.artifacts.checkpoint(ANSWERS, reflection_key(endpoint)))
        return Reflector(endpoint, kept, budget, asks_anew=asks_anew)
