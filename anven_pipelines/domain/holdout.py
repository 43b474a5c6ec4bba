"""The sealed holdouts' life: who opened which version, which items are burnt, and who may look again.

All is derived from three append-only streams: `holdout/<workload>`, in which each look is written before anything is
read, `sign_off/<workload>`, in which its outcome follows, and `shown/<workload>`, which names each version before how
its open items were answered is shown. A look without an outcome was interrupted after the seal was broken and counts
as one that failed. Whether a look was admitted depends only on what stood in the ledger before
it, so two runs at once get the same answer as one after the other: the first may look, the second may not.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Final, Literal, NamedTuple

from anven_pipelines.domain.canonical import digest_of
from anven_pipelines.domain.errors import BurntHoldout
from anven_pipelines.domain.workload import HOW_IT_IS_ASKED

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    import polars as pl

    from anven_pipelines.domain.events import Event
    from anven_pipelines.spec import Migration

OPENED: Final = "opened"
EXPORTED: Final = "exported"
ASKED: Final = "asked"
SHOWN: Final = "shown"
HOLDOUT_WAIVER: Final = "holdout"
MEASURED: Final = (
    "golden_dataset",
    "adapted_prompt",
    "legacy_answers",
    "target_answers",
    "scores",
    "grading",
    "grader_version",
    "limits",
)
"""Digests that make a look what it is; a price or a waiver does not make it another look."""

_DECIDES_AN_ATTEMPT: Final = {"legacy", "target", "grading", "contract", "prompt", "golden"}

Outcome = Literal["GO", "NO-GO", "INCONCLUSIVE", "no verdict"]


_NO_SIGN_OFF: Final = {EXPORTED: "an export", ASKED: "a nightly regression"}
"""Kinds of looks that no verdict follows: each is admitted, and burns."""


def holdout_stream(workload: str) -> str:
    """Return the state stream in which each opening of a workload's holdout stands."""
    return f"holdout/{workload}"


def shown_stream(workload: str) -> str:
    """Return the state stream that names each version of a workload whose open items were shown."""
    return f"shown/{workload}"


def limits_digest(migration: Migration) -> str:
    """Return the digest of the limits that the verdict is held against; waivers are no limits."""
    return digest_of(migration.model_dump(mode="json", include={"sign_off"}, exclude={"sign_off": {"waive"}}))


def draw_key(migration: Migration, inputs: Mapping[str, str]) -> str:
    """Name a draw of the golden dataset by all that is declared for the attempt which it is drawn for.

    The same declaration over the same inputs draws the same dataset again, so that its verdict can be reproduced. Any
    other prompt, target, limit, log or seed is another attempt and gets items that no failed one has looked at.

    Args:
        migration: As declared now.
        inputs: What the dataset is drawn from, such as `request_log`, to its digest.
    """
    sections = migration.model_dump(mode="json", include=_DECIDES_AN_ATTEMPT)
    # Where the logs lie does not matter: their digest is among the inputs.
    changes_nothing = {"legacy": {"price", "logs"}, "target": HOW_IT_IS_ASKED | {"price"}}
    declared = {
        name: {field: each for field, each in section.items() if field not in changes_nothing[name]}
        if name in changes_nothing
        else section
        for name, section in sections.items()
    }
    return digest_of([declared, limits_digest(migration), dict(inputs)])


def require_sealed(rows: pl.DataFrame, migration: Migration) -> None:
    """Refuse a draw that has nothing left to seal, before anything is spent on it.

    Raises:
        BurntHoldout: every item was looked at.
    """
    if not (rows["split"] == "sealed").any():
        message = (
            f"{migration.workload}: none of {rows.height} items can be sealed: each, or one of its conversation, was "
            "opened by a sign-off that failed, an export or a nightly regression, or stood open in an earlier version, "
            "of this workload or of another one with the same calls; "
            "add logs, or let them judge again with `sign_off.waive: [holdout]`, and the verdict says so"
        )
        raise BurntHoldout(message)


class Attempt(NamedTuple):
    """Which attempt of its workload a verdict is.

    Attributes:
        number: 1, and one for each other measurement of sealed items before it.
        items_overlap: Whether any two attempts up to this one judged some of the same items, as a GO leaves them
            sealed. Such a pair errs together, so that the attempts' chances do not multiply.
    """

    number: int = 1
    items_overlap: bool = False


class Seen(NamedTuple):
    """Names of items that somebody may have learnt from: their ids and their clusters.

    Attributes:
        burnt: Sealed ones that were opened and not signed off.
        shown: Those that stood open in a version whose answers were shown.
    """

    burnt: frozenset[str] = frozenset()
    shown: frozenset[str] = frozenset()


class Look(NamedTuple):
    """One opening of a holdout, and what became of it.

    Attributes:
        seq: Number of its event: the order in which the looks were asked for.
        workload: Whose sign-off, export or nightly regression it is.
        day: UTC, as it stands in the ledger.
        run: Dagster run that opened it; None where it was opened otherwise than by a sign-off.
        golden: Digest of the golden dataset whose sealed items it opened.
        draw: Key of that dataset's draw; None where it was opened otherwise than by a sign-off.
        measurement: Digest over `MEASURED`: looks that share it see the same scores against the same limits. The kind
            of its event where it is no sign-off's.
        waived: Criteria that were waived.
        outcome: The verdict that followed.
        statuses: Status of each criterion in that verdict.
    """

    seq: int
    workload: str
    day: str
    run: str | None
    golden: str
    draw: str | None
    measurement: str
    waived: frozenset[str]
    outcome: Outcome = "no verdict"
    statuses: Mapping[str, str] = {}

    @property
    def burns(self) -> bool:
        """Whether what it saw may never be sealed again."""
        return self.outcome != "GO"

    def __str__(self) -> str:
        """Write it as `run 1a2b3c4d of support on 2026-11-21 (NO-GO)`."""
        by = f"run {self.run[:8]}" if self.run else _NO_SIGN_OFF[self.measurement]
        return f"{by} of {self.workload} on {self.day} ({self.outcome})"


@dataclass(frozen=True)
class Ledger:
    """All looks at holdouts, and the versions whose open items were shown.

    Attributes:
        opened: Events of the holdouts' streams, oldest first.
        verdicts: Events of the sign-offs' streams, oldest first.
        shown: Events of the streams of shown versions, oldest first.
        sealed_of: Gives the names of a golden dataset's sealed items by its digest: their ids and their clusters. An
            item is known again by either, as a log may gain conversations and an import may leave them out.
        open_of: The same of its open items.
    """

    opened: Sequence[Event]
    verdicts: Sequence[Event]
    shown: Sequence[Event]
    sealed_of: Callable[[str], frozenset[str]]
    open_of: Callable[[str], frozenset[str]]

    def looks(self, *, before: int | None = None) -> list[Look]:
        """Return the looks that were admitted, as they stood before an event's number; None is now."""
        admitted: list[Look] = []
        for event in self._telling:  # whether a look was admitted depends on those before it
            if before is not None and event.seq >= before:
                break
            look = _look(event)
            if self._refusal(look, self._resolved(admitted, before=look.seq)) is None:
                admitted.append(look)
        return self._resolved(admitted, before=before)

    def seen(self) -> Seen:
        """Return the names that were seen until now."""
        return Seen(self._burnt_by(self.looks()), self._open_in(self._shown_before(None)))

    def seen_before(self, draw: str) -> Seen:
        """Return the names that a draw must not seal: those seen before it was first opened, or until now.

        What was seen later does not count, so that a draw can be repeated and its verdict reproduced. Nor do the open
        items of the draw's own version, which the same draw leaves open again; where something else has been seen of
        what that version seals, the draw comes out otherwise, and they count.
        """
        first = next((look.seq for look in self.looks() if look.draw == draw), None)
        burnt, versions = self._burnt_by(self.looks(before=first)), self._shown_before(first)
        shown = self._open_in(golden for golden, draws in versions.items() if draw not in draws)
        own = (golden for golden, draws in versions.items() if draw in draws)
        return Seen(burnt, shown | self._open_in(each for each in own if self.sealed_of(each) & (burnt | shown)))

    def require_admitted(self, event: Event) -> Seen:
        """Let a look that was just written into the ledger happen, or refuse it.

        Returns:
            Names of its sealed items that were seen before its measurement was first made. None is burnt, unless the
            migration file waives it; some may have stood open where other items could not be sealed.

        Raises:
            BurntHoldout: an earlier look burnt sealed items of its dataset, or its waivers were chosen after a look.
        """
        look, earlier = _look(event), self.looks(before=event.seq)
        if (reason := self._refusal(look, earlier)) is not None:
            raise BurntHoldout(reason)
        first = min((each.seq for each in earlier if each.measurement == look.measurement), default=event.seq)
        sealed = self.sealed_of(look.golden)
        shown = self._open_in(golden for golden in self._shown_before(first) if golden != look.golden)
        return Seen(self._burnt_by(self.looks(before=first)) & sealed, shown & sealed)

    def attempt(self, event: Event) -> Attempt:
        """Return which attempt of its workload a look is: 1, and one for each measurement first made before its own."""
        look, firsts = _look(event), dict[str, Look]()
        for each in self.looks(before=event.seq):
            if each.workload == look.workload and each.measurement not in _NO_SIGN_OFF:
                firsts.setdefault(each.measurement, each)
        began = firsts.get(look.measurement, look).seq
        earlier = [each for each in firsts.values() if each.seq < began]
        judged, overlap = set[str](), False
        for each in [*earlier, look]:
            sealed = self.sealed_of(each.golden)
            overlap |= not judged.isdisjoint(sealed)
            judged |= sealed
        return Attempt(1 + len(earlier), overlap)

    def _refusal(self, look: Look, earlier: Sequence[Look]) -> str | None:
        """Say why a look is not admitted after the earlier ones; None where it is."""
        if look.measurement in _NO_SIGN_OFF:
            return None
        if same := [each for each in earlier if each.measurement == look.measurement]:
            return _explain_late_waivers(look, same)
        if HOLDOUT_WAIVER in look.waived:
            return None
        sealed = self.sealed_of(look.golden)
        burnt = [each for each in earlier if each.burns and sealed & self.sealed_of(each.golden)]
        return _explain_burnt(burnt[0]) if burnt else None

    def _resolved(self, looks: Iterable[Look], *, before: int | None) -> list[Look]:
        """Give each look the verdict that followed it in its own run, else the next one on the same measurement."""
        return [self._with_verdict(look, before) for look in looks]

    def _with_verdict(self, look: Look, before: int | None) -> Look:
        following = [
            event
            for event in self._verdicts.get(look.measurement, ())
            if look.seq < event.seq and (before is None or event.seq < before)
        ]
        if not following:
            return look
        payload = next((each.payload for each in following if each.payload["run"] == look.run), following[0].payload)
        return look._replace(outcome=payload["verdict"], statuses=payload.get("statuses", {}))

    @cached_property
    def _telling(self) -> list[Event]:
        """The events without the nights after a version's first: they add nothing, and there is one every night."""
        asked: set[str] = set()
        telling: list[Event] = []
        for event in self.opened:  # keeps the first of its kind
            if event.kind == ASKED and event.payload["golden_dataset"] in asked:
                continue
            asked |= {event.payload["golden_dataset"]} if event.kind == ASKED else set()
            telling.append(event)
        return telling

    @cached_property
    def _verdicts(self) -> dict[str, list[Event]]:
        """The verdicts by what they measured."""
        found: dict[str, list[Event]] = {}
        for event in self.verdicts:
            found.setdefault(_measurement(event.payload), []).append(event)
        return found

    def _burnt_by(self, looks: Iterable[Look]) -> frozenset[str]:
        return frozenset().union(*(self.sealed_of(golden) for golden in {look.golden for look in looks if look.burns}))

    def _shown_before(self, before: int | None) -> dict[str, set[str | None]]:
        """Return the versions that were shown, by digest, with the draws that they were made for."""
        found: dict[str, set[str | None]] = {}
        for event in [*self.opened, *self.shown]:  # what was opened has been shown too
            if before is None or event.seq < before:
                found.setdefault(event.payload["golden_dataset"], set()).add(event.payload.get("draw"))
        return found

    def _open_in(self, versions: Iterable[str]) -> frozenset[str]:
        return frozenset().union(*map(self.open_of, versions))


def _look(event: Event) -> Look:
    payload = event.payload
    return Look(
        seq=event.seq,
        workload=event.stream.partition("/")[2],
        day=event.ts_text[:10],
        run=payload.get("run"),
        golden=payload["golden_dataset"],
        draw=payload.get("draw"),
        measurement=event.kind if event.kind in _NO_SIGN_OFF else _measurement(payload),
        waived=frozenset(payload.get("waived", ())),
    )


def _measurement(payload: Mapping[str, object]) -> str:
    return digest_of([payload.get(name) for name in MEASURED])


def _explain_late_waivers(look: Look, same: Sequence[Look]) -> str | None:
    """Refuse to waive, after a failed look, what any look has measured; what nobody measured may be waived late."""
    told = {(name, status == "unmeasured") for each in same for name, status in each.statuses.items()}
    never_measured = {name for name, unmeasured in told if unmeasured and (name, False) not in told}
    late = sorted(look.waived - same[0].waived - never_measured - {HOLDOUT_WAIVER})
    if not late or not any(each.burns for each in same):
        return None
    return (
        f"sign_off.waive names {', '.join(late)}, which {same[0]} did not waive and which has been measured; a "
        f"criterion can be waived before the holdout is opened or where no look measured it. Take it out of "
        f"sign_off.waive again, or "
        f"{_HOW_TO_GO_ON}"
    )


def _explain_burnt(burnt: Look) -> str:
    return (
        f"sealed items of golden dataset {burnt.golden[:12]} were opened by {burnt}, so they cannot judge other "
        f"answers, prompts or limits; {_HOW_TO_GO_ON}"
    )


_HOW_TO_GO_ON: Final = (
    "add logs or set golden.seed to another number, and golden_dataset seals items that no sign-off has opened and "
    "that stood open in no earlier version. Where it says that none are left, `sign_off.waive: [holdout]` reuses "
    "them, and the verdict says so"
)
