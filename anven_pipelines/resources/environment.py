"""What libraries look for in the process environment and nowhere else: keys, and the switches that keep them quiet."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Final

from anven_pipelines.domain.errors import InvalidInput

if TYPE_CHECKING:
    from collections.abc import Mapping

# Nothing that runs here calls home, waits for a download or reads a .env file.
PRIVACY: Final = {
    "LITELLM_LOCAL_MODEL_COST_MAP": "True",
    "LITELLM_MODE": "PRODUCTION",
    "RAGAS_DO_NOT_TRACK": "true",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "HF_HUB_OFFLINE": "1",
}
# Never None: LiteLLM would then send the key of OPENAI_API_KEY to whatever URL a file names.
NO_KEY: Final = "no-key-needed"


def keep_private() -> None:
    """Set the switches, here and for the processes started from here; an operator's own value stands."""
    for name, value in PRIVACY.items():
        os.environ.setdefault(name, value)


def api_key(variable: str | None, *, of: str, environment: Mapping[str, str] = os.environ) -> str | None:
    """Return the key that a migration file names by its environment variable; None where it names none.

    Args:
        variable: Name of the environment variable.
        of: Whose key it is, for the error.
        environment: Where the variable is looked up.

    Raises:
        InvalidInput: the variable is not set, or blank.
    """
    if variable is None:
        return None
    if key := environment.get(variable, "").strip():
        return key
    message = (
        f"the environment variable {variable} is not set or empty; the key of {of} is needed in it: "
        f"export {variable}=..., or leave api_key_env out where no key is needed"
    )
    raise InvalidInput(message)
