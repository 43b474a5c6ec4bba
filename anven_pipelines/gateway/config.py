"""The proxy's configuration and the gateway's settings, made from the migration files."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import yaml

from anven_pipelines.domain.errors import InvalidInput
from anven_pipelines.domain.prompts import AdaptedPrompt, carry_over, declared_prompt
from anven_pipelines.domain.traffic import DRILL, drill_of
from anven_pipelines.gateway.dealing import group
from anven_pipelines.gateway.settings import KEY_ENV, ArmSettings, GatewaySettings, WorkloadSettings
from anven_pipelines.migration_file import parse
from anven_pipelines.resources.redactor import EXTRA, is_installed
from anven_pipelines.spec import Contract
from anven_pipelines.spec_gateway import Upstream

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from anven_pipelines.spec import Migration
    from anven_pipelines.spec_values import Price

PLUGIN: Final = "anven_pipelines.gateway.plugin.gateway"


_WITHOUT_TEXT: Final = frozenset({"prometheus", "prometheus_system"})
_CALLBACKS: Final = ("callbacks", "success_callback", "failure_callback", "input_callback", "service_callback")
_TEXT_LEAVES_BY: Final = (
    ("litellm_settings", "set_verbose"),
    ("litellm_settings", "cold_storage_custom_logger"),
    ("general_settings", "alerting"),
    ("general_settings", "store_prompts_in_spend_logs"),
)


class Prepared(NamedTuple):
    """The two files a gateway starts with."""

    config: Path
    settings: Path
    workloads: tuple[str, ...]


def prepare(
    migrations: Sequence[Path],
    folder: Path,
    *,
    traffic: Path,
    events: Path,
    prompts: Path | None = None,
    litellm: Path | None = None,
) -> Prepared:
    """Write the proxy's configuration and the gateway's settings.

    Args:
        migrations: Migration files; those without a section `gateway` are left out.
        folder: Where the two files are written; no key stands in them.
        traffic: The traffic file that will be followed.
        events: Folder of the event log.
        prompts: Folder of `<workload>.json`, the adapted prompts that were found; a workload without one is asked
            with the rewrites of its migration file.
        litellm: Further settings of LiteLLM, such as a cache, a database or Prometheus' callback.

    Raises:
        InvalidInput: no file has the section, or one of them asks for what cannot be.
    """
    declared = _declared(migrations)
    served = {name: workload_settings(each, prompt=_prompt(each, prompts)) for name, each in declared.items()}
    settings = GatewaySettings(
        workloads=served | {drill_of(name): drill_settings(each) for name, each in served.items()},
        traffic=str(traffic.absolute()),
        events=str(events.absolute()),
    )
    folder.mkdir(parents=True, exist_ok=True)
    prepared = Prepared(folder / "proxy.yaml", folder / "gateway.json", tuple(sorted(declared)))
    config = proxy_config(declared)
    if litellm is not None:
        config = _with_more(config, litellm)
    prepared.config.write_text(json.dumps(config, indent=1), encoding="utf-8")  # JSON is YAML
    prepared.settings.write_text(settings.model_dump_json(indent=1), encoding="utf-8")
    return prepared


def proxy_config(migrations: Mapping[str, Migration]) -> dict[str, Any]:
    """Return LiteLLM's configuration: four model groups for each workload and for its drills, and our plugin.

    The group `<workload>` is legacy's, so that a request which the plugin did not deal is answered as it always was.
    Mirrored requests have a group of their own: what they ask of the target uses up no limit of its users'.
    Retries and cooldowns of the router are off: the target's failures have to show, and legacy rescues them. So is what
    the router adds to errors: it names arms, models and fallbacks, and quotes messages.
    """
    groups = [each for migration in migrations.values() for each in _groups(migration)]
    is_limited = any({"rpm", "tpm"} & set(each["litellm_params"]) for each in groups)
    # By itself LiteLLM only weighs by these limits, and one deployment of a group gets all whatever its weight.
    checks = {"optional_pre_call_checks": ["enforce_model_rate_limits"]} if is_limited else {}
    return {
        "model_list": groups,
        "router_settings": {"num_retries": 0, "disable_cooldowns": True, **checks},
        "litellm_settings": {
            "num_retries": 0,
            "callbacks": [PLUGIN],
            "drop_params": False,
            "expose_router_debug_in_errors": False,
        },
        "general_settings": {"master_key": f"os.environ/{KEY_ENV}"},
    }


def workload_settings(migration: Migration, *, prompt: AdaptedPrompt) -> WorkloadSettings:
    """Return what a worker has to know of a workload.

    Raises:
        InvalidInput: it has no section `gateway`, wants text to be kept without a redactor, or a spending cap without a
            price.
    """
    gateway = _section(migration)
    if gateway.store_text and not is_installed():
        message = (
            f"{migration.workload}: gateway.store_text is true, but no redactor is installed, and text that was not "
            f"redacted is never kept; install {EXTRA}, or set it to false"
        )
        raise InvalidInput(message)
    if gateway.shadow.usd_per_day is not None and migration.target.price is None:
        message = f"{migration.workload}: gateway.shadow.usd_per_day needs target.price, to know what a request costs"
        raise InvalidInput(message)
    target, upstream = migration.target, _target(migration)
    return WorkloadSettings(
        legacy=ArmSettings(
            model=gateway.legacy.model, prompt=carry_over(), price=migration.legacy.price, url=gateway.legacy.url
        ),
        target=ArmSettings(
            model=upstream.model,
            prompt=prompt,
            params=getattr(target, "params", {}),
            price=target.price,
            url=upstream.url,
        ),
        gateway=gateway,
        contract=migration.contract,
        score_wait=migration.rollout.settle + migration.rollout.label_delay,
        judged=migration.rollout.judged,
    )


def drill_settings(workload: WorkloadSettings) -> WorkloadSettings:
    """Return how a drill asks: the same arms, with its own words as they are and few tokens."""
    return workload.model_copy(
        update={
            "legacy": workload.legacy.model_copy(update={"prompt": carry_over()}),
            "target": workload.target.model_copy(update={"prompt": carry_over(), "params": {}}),
            "contract": Contract(),
            "gateway": workload.gateway.model_copy(update={"store_text": False}),
        }
    )


def _declared(files: Sequence[Path]) -> dict[str, Migration]:
    found: dict[str, Migration] = {}
    for file in files:
        try:
            migration = parse(file.read_text(encoding="utf-8"), file=str(file))
        except (OSError, UnicodeDecodeError) as error:
            message = f"{file} cannot be read ({error}); a migration file is needed"
            raise InvalidInput(message) from error
        if migration.gateway is None:
            continue
        if migration.workload.endswith(DRILL):
            message = f"{file}: the workload is {migration.workload!r}; names that end in {DRILL!r} are the drills' own"
            raise InvalidInput(message)
        if migration.workload in found:
            message = f"{file}: the workload {migration.workload!r} is declared twice; one file for each is needed"
            raise InvalidInput(message)
        found[migration.workload] = migration
    if not found:
        message = (
            f"none of {', '.join(map(str, files)) or 'no files'} has a section `gateway`, which says where the arms "
            "are reached; add `gateway: {legacy: {model: openai/NAME, api_key_env: NAME}}` (docs/gateway.md)"
        )
        raise InvalidInput(message)
    return found


def _with_more(config: dict[str, Any], file: Path) -> dict[str, Any]:
    """Add further settings of LiteLLM; what the gateway rests on stays as it is."""
    try:
        more = yaml.safe_load(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError) as error:
        message = f"{file} cannot be read ({error}); settings of LiteLLM are needed, as YAML"
        raise InvalidInput(message) from error
    if not isinstance(more, dict) or not all(isinstance(each, dict) for each in more.values()):
        message = f"{file} must hold sections, such as litellm_settings: {{cache: true}}"
        raise InvalidInput(message)
    _require_no_text_leaves(more, file)
    merged = dict(config)
    for name, section in more.items():
        own = config.get(name, {})
        if name == "model_list" or (taken := sorted((set(own) & set(section)) - {"callbacks"})):
            found = "model_list" if name == "model_list" else f"{name}.{taken[0]}"
            message = f"{file}: {found} is the gateway's own; leave it out"
            raise InvalidInput(message)
        merged[name] = {**own, **section}
        if callbacks := [*own.get("callbacks", []), *section.get("callbacks", [])]:
            merged[name]["callbacks"] = callbacks
    return merged


def _require_no_text_leaves(more: Mapping[str, Mapping[str, Any]], file: Path) -> None:
    """Refuse what hands requests and answers on, or logs them.

    LiteLLM's own switch, `turn_off_message_logging`, is no way out: any client undoes it with a header
    (litellm-disable-message-redaction), and it hides the answer from our check of its form, too.
    """
    settings = more.get("litellm_settings", {})
    named = [(key, each) for key in _CALLBACKS for each in _listed(settings.get(key))]
    found = [f"litellm_settings.{key}: {each}" for key, each in named if each not in _WITHOUT_TEXT]
    found += [f"{name}.{key}" for name, key in _TEXT_LEAVES_BY if more.get(name, {}).get(key)]
    if found:
        message = (
            f"{file}: {found[0]} would get the text of requests and answers, which nobody has redacted; leave it out. "
            "Spans without text are sent where OTEL_EXPORTER_OTLP_ENDPOINT is set (docs/gateway.md); of callbacks, "
            f"{', '.join(sorted(_WITHOUT_TEXT))} are taken"
        )
        raise InvalidInput(message)


def _listed(value: object) -> list[Any]:
    return value if isinstance(value, list) else [] if value is None else [value]


def _section(migration: Migration) -> Any:  # noqa: ANN401 - Gateway; callers have chosen those that have one
    if migration.gateway is None:
        message = f"{migration.workload} has no section `gateway`"
        raise InvalidInput(message)
    return migration.gateway


def _target(migration: Migration) -> Upstream:
    _section(migration)
    return Upstream.model_validate(migration.target_upstream)


def _groups(migration: Migration) -> list[dict[str, Any]]:
    name = migration.workload
    legacy = _params(_section(migration).legacy) | _rates(migration.legacy.price)
    target = _params(_target(migration)) | _rates(migration.target.price)
    groups: dict[str, dict[str, Any]] = {}
    for each in (name, drill_of(name)):
        groups |= {each: legacy, group(each, "legacy"): legacy}
        groups |= {group(each, asked): target for asked in ("target", "shadow")}
    return [
        {"model_name": each, "litellm_params": params, "model_info": {"id": f"{each}-1"}}
        for each, params in groups.items()
    ]


def _params(upstream: Upstream) -> dict[str, Any]:
    params: dict[str, Any] = {"model": upstream.model, "timeout": upstream.timeout.total_seconds()}
    if upstream.url is not None:
        params["api_base"] = upstream.url
    if upstream.api_key_env is not None:
        params["api_key"] = f"os.environ/{upstream.api_key_env}"
    elif upstream.url is not None:
        params["api_key"] = "none"  # LiteLLM asks for one; a server without keys ignores it
    limits = {"rpm": upstream.rpm, "tpm": upstream.tpm}
    return params | {name: limit for name, limit in limits.items() if limit is not None}


def _rates(price: Price | None) -> dict[str, float]:
    """Return a price in LiteLLM's words; without one its own price map stands.

    To leave it out costs time: LiteLLM 1.106.2 looks for the reason of each request that cost nothing, for some 3 ms
    of its processor (`benchmarks/gateway_overhead.py`).
    """
    if price is None:
        return {}
    rates = {
        "input_cost_per_token": price.input_usd_per_million / 1e6,
        "output_cost_per_token": price.output_usd_per_million / 1e6,
    }
    if price.cached_usd_per_million is not None:
        rates["cache_read_input_token_cost"] = price.cached_usd_per_million / 1e6
    return rates


def _prompt(migration: Migration, folder: Path | None) -> AdaptedPrompt:
    path = None if folder is None else folder / f"{migration.workload}.json"
    if path is None or not path.exists():
        return declared_prompt(migration.prompt)
    try:
        return AdaptedPrompt.model_validate_json(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        message = f"{path} is no adapted prompt: {error}; write what the asset adapted_prompt holds"
        raise InvalidInput(message) from error
