"""Every error the product raises on purpose.

AnvenError
├── InvalidInput              the user gave something that cannot be used; the command line exits with 2
│   ├── InvalidMigration      a migration file breaks its schema; carries every problem found
│   ├── UnknownWorkload       no migration file declares the workload
│   ├── UnreadableSource      a log or answers file cannot be opened or is not of its declared format
│   ├── EmptyGolden           no logged call qualifies for the golden dataset
│   ├── BurntHoldout          sealed items were looked at before, by a sign-off that failed
│   ├── ContextLengthExceeded a prompt with its answer does not fit the model's context (worker.engine)
│   └── UnsupportedRequest    a request needs what the engine cannot do (worker.engine)
├── MissingInput              an upstream asset has not been materialised
├── StaleInput                two inputs of one step come from different upstream versions
├── CorruptArtifact           stored bytes do not match the digest they were published under
├── TamperedLog               the state store's hash chain does not verify
├── UnavailableService        an external system did not answer; what needed it stays unmeasured
│   └── EngineFailed          the engine broke while it answered (worker.engine)
├── RedactionFailed           a text could not be looked through; it is not kept
├── StepFailed                a step ended with an error that is not one of these
├── CheckFailed               a blocking check stopped the chain; the command line exits with 1
└── TooFewPairs               too little data for the requested statistic

Each message says what was found, what was needed and how to mend it.
"""

from __future__ import annotations

from typing import NamedTuple


class AnvenError(Exception):
    """Root of the errors that the product raises on purpose."""


class InvalidInput(AnvenError):
    """The user gave something that cannot be used."""


class Problem(NamedTuple):
    """One thing wrong in a migration file."""

    path: str
    found: str
    needed: str

    def __str__(self) -> str:
        """Write the problem as `path is found; needed`."""
        return f"{self.path} is {self.found}; {self.needed}"


class InvalidMigration(InvalidInput):
    """A migration file breaks its schema; every problem found is carried."""

    def __init__(self, file: str, problems: tuple[Problem, ...]) -> None:
        """Keep the file and its problems, and write them one a line."""
        self.file = file
        self.problems = problems
        super().__init__("\n".join(f"{file}: {problem}" for problem in problems))


class UnknownWorkload(InvalidInput):
    """No migration file declares the workload."""


class UnreadableSource(InvalidInput):
    """A log or answers file cannot be opened or is not of its declared format."""


class EmptyGolden(InvalidInput):
    """No logged call qualifies for the golden dataset."""


class BurntHoldout(InvalidInput):
    """Sealed items were looked at before, by a sign-off that failed."""


class MissingInput(AnvenError):
    """An upstream asset has not been materialised."""


class StaleInput(AnvenError):
    """Two inputs of one step come from different upstream versions."""


class CorruptArtifact(AnvenError):
    """Stored bytes do not match the digest they were published under."""


class TamperedLog(AnvenError):
    """The state store's hash chain does not verify."""


class UnavailableService(AnvenError):
    """An external system did not answer."""


class RedactionFailed(AnvenError):
    """A text could not be looked through; it is not kept. The message holds nothing of it."""


class StepFailed(AnvenError):
    """A step ended with an error that is not one of the product's own."""


class CheckFailed(AnvenError):
    """A blocking check stopped the chain."""


class TooFewPairs(AnvenError):
    """Too little data for the requested statistic."""
