"""Who asks what and when: calls of several applications, users and conversations."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, NamedTuple

import numpy as np

from anven_pipelines.domain.errors import InvalidInput
from anven_pipelines.nano.tasks import TASKS, generate

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from anven_pipelines.nano.tasks import Item, Split, Task


class Application(NamedTuple):
    """A caller of the model, with its share of all conversations."""

    name: str
    task: Task
    share: float


class PlannedCall(NamedTuple):
    """One call: `at_s` seconds after the start, a user of an application asks for an item's answer."""

    at_s: float
    application: str
    user: str
    conversation_id: str
    item: Item


class TrafficPlan(NamedTuple):
    """Calls in the order of their arrival."""

    calls: tuple[PlannedCall, ...]


APPLICATIONS: Final = (
    Application("helpdesk", "answer", 0.4),
    Application("router", "intent", 0.35),
    Application("actions", "tool", 0.25),
)
USERS: Final = 40
LONGEST_CONVERSATION: Final = 4  # calls


def plan_traffic(
    arrivals: NDArray[np.float64],
    *,
    split: Split,
    seed: int,
    applications: tuple[Application, ...] = APPLICATIONS,
    users: int = USERS,
) -> TrafficPlan:
    """Give every arrival an application, a user, a conversation and a question that nobody else asks.

    A conversation is 1 to 4 calls of one user to one application, and several are open at a time. Users differ:
    the k-th opens conversations in proportion to 1/k (Zipf).

    Args:
        arrivals: Seconds from the start, ascending, shape (n,).
        split: Where the questions come from.
        seed: The same arguments give the same plan.
        applications: Shares need not add up to 1.
        users: Number of users, shared by all applications.

    Raises:
        InvalidInput: there are no users or no applications with a share.
    """
    shares = np.array([application.share for application in applications])
    if users < 1 or shares.sum() <= 0 or shares.min() < 0:
        message = f"{users} users and applications with the shares {shares.tolist()}; at least one of each is needed"
        raise InvalidInput(message)
    rng = np.random.default_rng(seed)
    activity = 1.0 / np.arange(1, users + 1)
    items = _items(split, len(arrivals), seed)
    open_conversations: list[_Conversation] = []
    calls: list[PlannedCall] = []
    opened = 0
    for at_s in arrivals.tolist():  # each call depends on the conversations that are open, hence a loop
        # As often as not a call goes on with a conversation, so that the open ones stay few and end.
        if open_conversations and rng.random() < 0.5:  # noqa: PLR2004 - a chance stands where it is taken
            conversation = open_conversations.pop(int(rng.integers(len(open_conversations))))
        else:
            opened += 1
            conversation = _Conversation(
                f"conversation-{seed}-{opened:05}",
                f"user-{int(rng.choice(users, p=activity / activity.sum())) + 1:03}",
                applications[int(rng.choice(len(applications), p=shares / shares.sum()))],
                int(rng.integers(1, LONGEST_CONVERSATION + 1)),
            )
        application = conversation.application
        calls.append(
            PlannedCall(at_s, application.name, conversation.user, conversation.id, items[application.task].pop())
        )
        if conversation.calls_left > 1:
            open_conversations.append(conversation._replace(calls_left=conversation.calls_left - 1))
    return TrafficPlan(tuple(calls))


class _Conversation(NamedTuple):
    id: str
    user: str
    application: Application
    calls_left: int


def _items(split: Split, count: int, seed: int) -> dict[Task, list[Item]]:
    """Generate enough items of every task for `count` calls, the next one last."""
    items = generate(split, count * len(TASKS), seed=seed)
    return {task: [item for item in reversed(items) if item.task == task] for task in TASKS}
