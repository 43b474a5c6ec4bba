"""What a workload's searches for a prompt were shown and what was looked at to prove their gain, in the state store."""

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Final, NamedTuple

from anven_pipelines.domain.canonical import digest_of
from anven_pipelines.domain.errors import StaleInput
from anven_pipelines.resources.state_store import StateStore

SEARCHED: Final = "searched"
VALIDATED: Final = "validated"


class PromptLooks(NamedTuple):
    """The `Looks` of a workload.

    Attributes:
        state: Holds the log.
        workload: Whose searches they are.
        golden: Digest of the golden dataset that is searched on now.
    """

    state: StateStore
    workload: str
    golden: str

    def searched(self) -> frozenset[str]:
        """Return the ids of items that any search of the workload was shown, and their conversations.

        Raises:
            TamperedLog: an event is not what was appended, so nobody knows what was searched on.
        """
        self.state.require_intact()
        return self._searched()

    def show(self, items: Mapping[str, str]) -> None:
        """Write down which items a search is about to be shown that none was before, with their conversations."""
        known = self._searched()
        new = {item: cluster for item, cluster in sorted(items.items()) if not {item, cluster} <= known}
        if not new:
            return
        payload = {"golden_dataset": self.golden, "items": list(new), "conversations": sorted(set(new.values()))}
        self.state.append(
            stream=self._stream, kind=SEARCHED, key=f"searched/{digest_of(payload)}", payload=payload, now=_now()
        )

    def look(self, prompt: str, *, items: Mapping[str, str], measure: str) -> int:
        """Write down a look at validation items, see `Looks`; return how many others there were before.

        Raises:
            StaleInput: a run beside this one searches on some of the items, or of their conversations.
        """
        known = self._searched()
        if searched := sum(not known.isdisjoint(names) for names in items.items()):
            message = (
                f"{self.workload}: another run searches on {searched} of the {len(items)} items that were to "
                "prove a gain; wait for it to end, then materialise adapted_prompt again"
            )
            raise StaleInput(message)
        payload = {
            "golden_dataset": self.golden,
            "prompt": prompt,
            "validation": digest_of(sorted(items)),
            "measure": measure,
        }
        event = self.state.append(
            stream=self._stream, kind=VALIDATED, key=f"validated/{digest_of(payload)}", payload=payload, now=_now()
        )
        return sum(each.seq < event.seq for each in self.state.events(self._stream, VALIDATED))

    def _searched(self) -> frozenset[str]:
        events = [event.payload for event in self.state.events(self._stream, SEARCHED)]
        # Events of earlier versions hold ids alone.
        return frozenset(name for each in events for name in (*each["items"], *each.get("conversations", ())))

    @property
    def _stream(self) -> str:
        return f"prompt/{self.workload}"


def _now() -> datetime:
    return datetime.now(UTC)
