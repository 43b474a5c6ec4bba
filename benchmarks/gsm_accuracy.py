"""Grade the four GSM8K recordings beside two other extractors, and name every item on which they differ.

    python benchmarks/gsm_accuracy.py [--json] [--quick] [--data FOLDER]

The recordings are no part of the project; FOLDER holds one `MODEL.json.gz` per model in the ZeroEval layout.
`naive` is what a first script does: the last `"answer": ...` in the text, without `$`, `%` and `,`, as a float.
`first` takes the first number of the field where our grader takes the last; it gives the published figures exactly.
"""

from __future__ import annotations

import argparse
import gzip
import json
import re
from pathlib import Path
from typing import Any, Final, NamedTuple

from anven_pipelines.domain.grading import check_contract, grade
from anven_pipelines.domain.json_answer import find_field
from anven_pipelines.domain.number_answer import numbers_in, only_number
from anven_pipelines.spec import Contract
from anven_pipelines.spec_grading import JsonFieldGrader

DATA: Final = Path(__file__).parents[2] / "shared" / "data" / "zeroeval_gsm"
MODELS: Final = (
    "gpt-4o-2024-05-13",
    "gpt-3.5-turbo-0125",
    "Meta-Llama-3.1-70B-Instruct",
    "Meta-Llama-3.1-8B-Instruct",
)
PUBLISHED: Final = dict(zip(MODELS, (95.38, 80.36, 94.16, 84.00), strict=True))
PAIRS: Final = (
    ("gpt-3.5-turbo-0125", "Meta-Llama-3.1-70B-Instruct"),
    ("gpt-4o-2024-05-13", "Meta-Llama-3.1-70B-Instruct"),
    ("gpt-4o-2024-05-13", "Meta-Llama-3.1-8B-Instruct"),
)
GRADER: Final = JsonFieldGrader(kind="json_field", field="answer", compare="number")
FIELDS: Final = Contract(json_object=True, required=["answer"])
BARE: Final = Contract(json_object=True, required=["answer"], bare=True)
NAIVE: Final = re.compile(r'"answer"\s*:\s*"?([^"\n}]*)')


class Recording(NamedTuple):
    """One model's recorded answer to one item."""

    item_id: str
    ground_truth: str
    output: str


def read(model: str, folder: Path = DATA) -> list[Recording]:
    """Read a model's recordings."""
    with gzip.open(folder / f"{model}.json.gz", "rt", encoding="utf-8") as file:
        return [
            Recording(record["id"], record["answer"].removeprefix("#").strip(), record["output"][0])
            for record in json.load(file)
        ]


def naive_score(recording: Recording) -> float:
    """Score as a first script would."""
    found = NAIVE.findall(recording.output)
    try:
        value = float(re.sub(r"[$%,\s]", "", found[-1])) if found else None
    except ValueError:
        value = None
    return float(value == float(recording.ground_truth.replace(",", "")))


def first_score(recording: Recording) -> float:
    """Score by the first number of the field."""
    value = find_field(recording.output, GRADER.field).value
    found = numbers_in(value if isinstance(value, str) else json.dumps(value))
    return float(bool(found) and found[0] == only_number(recording.ground_truth))


PEERS: Final = {"naive": naive_score, "first": first_score}


def percent(scores: list[float]) -> float:
    """Write a mean score as a percentage, to the hundredth that is published."""
    return round(100 * sum(scores) / len(scores), 2)


def measure(recordings: list[Recording]) -> dict[str, Any]:
    """Grade one model's recordings."""
    grades = [grade(GRADER, output=item.output, ground_truth=item.ground_truth) for item in recordings]
    scores = [given.score for given in grades if given.score is not None]
    reasons = [given.reason for given in grades if given.reason is not None]
    return {
        "items": len(recordings),
        "not_gradable": len(recordings) - len(scores),
        "accuracy": percent(scores),
        **{f"{name}_accuracy": percent([score(item) for item in recordings]) for name, score in PEERS.items()},
        "zeros": {reason: reasons.count(reason) for reason in sorted(set(reasons))},
        "contract_kept": sum(bool(check_contract(FIELDS, item.output, answered=True).kept) for item in recordings),
        "contract_kept_bare": sum(bool(check_contract(BARE, item.output, answered=True).kept) for item in recordings),
        **{
            f"differs_from_{name}": {
                item.item_id: {"score": given.score, name: score(item)}
                for item, given in zip(recordings, grades, strict=True)
                if given.score != score(item)
            }
            for name, score in PEERS.items()
        },
    }


def flips(legacy: list[Recording], target: list[Recording]) -> dict[str, int]:
    """Count the items that one model has right and the other wrong."""
    right: list[dict[str, bool]] = [
        {item.item_id: grade(GRADER, output=item.output, ground_truth=item.ground_truth).score == 1 for item in arm}
        for arm in (legacy, target)
    ]
    pairs = [(right[0][item_id], right[1][item_id]) for item_id in right[0]]
    return {"lost": pairs.count((True, False)), "gained": pairs.count((False, True))}


def main() -> None:
    """Print the table, or with --json one object."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument("--quick", action="store_true", help="the same; all of it takes two seconds")
    parser.add_argument("--data", type=Path, default=DATA, help="folder of the recordings")
    options = parser.parse_args()
    recordings = {model: read(model, options.data) for model in MODELS}
    models = {model: measure(items) for model, items in recordings.items()}
    pairs = {f"{legacy} -> {target}": flips(recordings[legacy], recordings[target]) for legacy, target in PAIRS}
    if options.json:
        print(json.dumps({"models": models, "pairs": pairs}))
        return
    for model, found in models.items():
        print(f"{model}: {found['accuracy']:.2f} % (published {PUBLISHED[model]:.2f})")
        print(
            f"    contract kept by {found['contract_kept']}, bare by {found['contract_kept_bare']} of {found['items']}"
        )
        print(f"    zeros: {found['zeros']}")
        for name in PEERS:
            differing = {item_id: scores["score"] for item_id, scores in found[f"differs_from_{name}"].items()}
            print(f"    {name} extractor: {found[f'{name}_accuracy']:.2f} %; our score where it differs: {differing}")
    for pair, counts in pairs.items():
        print(f"{pair}: {counts['lost']} lost, {counts['gained']} gained")


if __name__ == "__main__":
    main()
