"""Calls that ask nearly the same for the same answer become one; calls that do not stay apart."""

from __future__ import annotations

import random
import time
from collections import Counter
from typing import Any

import polars as pl
import pytest

from anven_pipelines.domain.canonical import canonical_json
from anven_pipelines.domain.near_duplicates import families

LONG = " ".join(f"word{at}" for at in range(80))


def prompt(text: str) -> str:
    return canonical_json([{"role": "user", "content": text}])


def call(number: int, text: str, **changes: Any) -> dict[str, Any]:
    return {
        "id": f"r{number}",
        "turn_key": f"{number:04}",
        "messages": prompt(text),
        "stratum": "{}",
        "adversarial": False,
        "edge_case": False,
        "ground_truth": "yes",
        "context": None,
        "asked_with": "{}",
        "application": "chat",
        "endpoint": "unknown",
        "task": "unknown",
        **changes,
    }


def kept(*calls: dict[str, Any], threshold: float = 0.9) -> list[str]:
    """Return the id that stands for each call, in the calls' order."""
    told = families(pl.DataFrame(list(calls), infer_schema_length=None), threshold=threshold)
    standing = dict(told.select("id", "kept").iter_rows())
    return [standing[each["id"]] for each in calls]


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("Where is my order?", "where  is my ORDER?"),
        ("Where is my order?\nThanks", "Where is my order? Thanks"),
        ("\uff37here is my order?", "Where is my order?"),
        ("Status at 2026-11-01T08:00:00Z?", "Status at 2026-11-02 09:30:00.5+01:00?"),
        ("Session 0b0e7f0a-1111-4222-8333-94445555aaaa?", "Session 9c0e7f0a-1111-4222-8333-94445555bbbb?"),
        (LONG, LONG.replace("word40", "other")),
    ],
)
def test_near_identical_prompts_with_one_answer_are_one_item(one: str, other: str) -> None:
    assert kept(call(1, one), call(2, other)) == ["r1", "r1"]


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("How much is 6 x 7?", "How much is 8 x 7?"),
        ("Is 17 a prime number?", "Is 19 a prime number?"),
        ("Delivered on 2026-11-01?", "Delivered on 2026-11-02?"),
        (LONG, LONG.replace("word40", "other").replace("word60", "another")),
        ("注文した商品がまだ届いていません", "注文した商品が昨日届きました"),
    ],
)
def test_prompts_that_differ_in_what_they_ask_stay_apart(one: str, other: str) -> None:
    assert kept(call(1, one), call(2, other)) == ["r1", "r2"]


@pytest.mark.parametrize(
    "changes",
    [
        {"ground_truth": "no"},
        {"ground_truth": None},
        {"stratum": '{"task":"b"}'},
        {"context": '["a"]'},
        {"asked_with": '{"tools":[]}'},
        {"edge_case": True},
        {"adversarial": True},
    ],
)
def test_equal_prompts_stay_apart_where_anything_else_that_counts_differs(changes: dict[str, Any]) -> None:
    assert kept(call(1, LONG), call(2, LONG, **changes), call(3, LONG)) == ["r1", "r2", "r1"]


def test_a_shared_template_does_not_make_short_questions_alike() -> None:
    questions = [f"{LONG} The customer says: {word} broke" for word in ("kettle", "lamp", "radio", "clock") * 5]
    calls = [call(at, f"{text} {at // 4}") for at, text in enumerate(questions)]
    assert kept(*calls) == [each["id"] for each in calls]


def test_near_duplicates_within_a_template_are_still_found() -> None:
    body = " ".join(f"fact{at}" for at in range(60))
    calls = [call(at, f"{LONG} {' '.join(f'own{at}x{place}' for place in range(60))}") for at in range(20)]
    twins = [call(20, f"{LONG} {body}"), call(21, f"{LONG} {body.replace('fact30', 'fact')}")]
    assert kept(*calls, *twins)[-2:] == ["r20", "r20"]


def test_a_chain_of_small_changes_does_not_collapse_prompts_that_are_far_apart() -> None:
    words = LONG.split()
    chain = [" ".join(["new"] * step + words[step:]) for step in range(9)]
    standing = kept(*(call(at, text) for at, text in enumerate(chain)))
    assert standing[0] == standing[1] == "r0"
    assert len(set(standing)) > 1


def test_the_first_by_rank_stays_whatever_the_order() -> None:
    texts = [LONG, *(LONG.replace(f"word{at}", "x") for at in (20, 30, 40, 50))]
    calls = [call(at, text, turn_key=f"{(at * 7) % 5}") for at, text in enumerate(texts)]
    orders = [calls[turn:] + calls[:turn] for turn in range(5)]
    assert {tuple(sorted(zip((c["id"] for c in order), kept(*order), strict=True))) for order in orders} == {
        tuple((f"r{at}", "r0") for at in range(5))
    }


def jaccard(one: set[Any], other: set[Any]) -> float:
    return len(one & other) / len(one | other)


@pytest.mark.parametrize("threshold", [0.8, 0.9])
def test_it_finds_what_comparing_every_pair_finds(threshold: float) -> None:
    """The reference keeps sets of word triples in plain Python and compares each text with every kept one."""
    rng = random.Random(5)
    texts = []
    for _ in range(60):
        words = [f"w{rng.randrange(500)}" for _ in range(rng.randrange(40, 90))]
        texts += [
            " ".join(words[:at] + ["zz"] * width + words[at + width :]) for at, width in ((0, 0), (9, 1), (20, 3))
        ]
    rng.shuffle(texts)
    padded = [["^", "^", "content", *text.split(), "role", "user", "^", "^"] for text in texts]
    triples = [set(zip(words, words[1:], words[2:], strict=False)) for words in padded]
    counts = Counter(triple for each in triples for triple in each)
    own = [{triple for triple in each if counts[triple] < len(texts) / 10} for each in triples]
    expected: list[str] = []
    for at, each in enumerate(own):
        near = (of for of in range(at) if expected[of] == f"r{of}" and jaccard(own[of], each) >= threshold)
        expected.append(f"r{next(near, at)}")
    assert 60 <= len(set(expected)) < len(texts)
    assert kept(*(call(at, text) for at, text in enumerate(texts)), threshold=threshold) == expected


def test_ten_thousand_prompts_take_seconds() -> None:
    rng = random.Random(1)
    bases = [" ".join(f"w{rng.randrange(2000)}" for _ in range(30)) for _ in range(4_000)]
    calls = pl.DataFrame([call(at, f"{rng.choice(bases)} {at % 3}") for at in range(10_000)], infer_schema_length=None)
    started = time.process_time()
    families(calls, threshold=0.9)
    assert time.process_time() - started < 20
