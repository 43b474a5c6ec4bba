"""Scores and contract checks: what is right, what is the model's fault, and what was not measured."""

from __future__ import annotations

import json
import math
import time
from fractions import Fraction
from typing import Any

import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from anven_pipelines.domain import grading
from anven_pipelines.domain.comparison import normalised
from anven_pipelines.domain.grading import (
    Grade,
    check_contract,
    check_contract_rows,
    grade,
    grade_rows,
    grader_name,
)
from anven_pipelines.domain.json_answer import find_field
from anven_pipelines.domain.judging import JudgeItem, contexts_of, judge_items, judged_frame, question_of
from anven_pipelines.domain.number_answer import last_number, numbers_in, only_number
from anven_pipelines.spec import Contract
from anven_pipelines.spec_grading import (
    ExactGrader,
    Grader,
    JsonFieldGrader,
    Judge,
    NumberGrader,
    RagasGrader,
    RegexGrader,
    TextGrader,
)

EXACT = ExactGrader(kind="exact")
TEXT = TextGrader(kind="text")
NUMBER = NumberGrader(kind="number")
FIELD = JsonFieldGrader(kind="json_field", field="answer")
NUMBER_FIELD = JsonFieldGrader(kind="json_field", field="answer", compare="number")
LETTER = RegexGrader(kind="regex", pattern=r"answer is \(?([A-D])")
FAITHFUL = RagasGrader(kind="ragas", judge=Judge(model="judge", url="http://127.0.0.1:9/v1"))
DETERMINISTIC = [EXACT, TEXT, NUMBER, FIELD, NUMBER_FIELD, LETTER]
RIGHT = Grade(1.0, None)
DIFFERS = Grade(0.0, "differs from the ground truth")


@pytest.mark.parametrize(
    ("grader", "output", "ground_truth"),
    [
        (EXACT, "Paris", "Paris"),
        (TEXT, "  **PARIS**. ", "paris"),
        (TEXT, "\uff30aris\n", "Paris"),  # full-width letters
        (TEXT, "STRASSE", "Straße"),
        (TEXT, "New \u00a0 York", "new york"),
        (NUMBER, "3 apples and 4 pears make 7.", "7"),
        (FIELD, '{"answer": "Paris"}', "paris"),
        (FIELD, '{"answer": true}', "true"),
        (FIELD, '{"answer": {"b": [1, 2], "a": null}}', '{"a":null,"b":[1,2]}'),
        (NUMBER_FIELD, '{"answer": "$1,200.00"}', "1200"),
        (LETTER, "So the answer is (B).", "b"),
        (RegexGrader(kind="regex", pattern=r"\d{4}-\d{2}"), "due 2026-11 at last", "2026-11"),
        (RegexGrader(kind="regex", pattern=r"total: (.*)", compare="number"), "total: 5 EUR", "5.0"),
    ],
)
def test_a_right_answer_scores_one(grader: grading.DeterministicGrader, output: str, ground_truth: str) -> None:
    assert grade(grader, output=output, ground_truth=ground_truth) == RIGHT


@pytest.mark.parametrize(
    ("grader", "output", "ground_truth", "reason"),
    [
        (EXACT, "paris", "Paris", "differs from the ground truth"),
        (EXACT, "Paris ", "Paris", "differs from the ground truth"),
        (TEXT, "Lyon", "Paris", "differs from the ground truth"),
        (TEXT, "-5", "5", "differs from the ground truth"),
        (TEXT, "C#", "C", "differs from the ground truth"),
        (TEXT, "5%", "5", "differs from the ground truth"),
        (TEXT, ".5", "5", "differs from the ground truth"),
        (TEXT, "!", "?", "differs from the ground truth"),
        (NUMBER, "7 is less than 8", "7", "differs from the ground truth"),
        (NUMBER, "seven", "7", "no number in the answer"),
        (NUMBER, "7 or 1e999999999", "7", "no number in the answer"),
        (NUMBER, "NaN", "7", "no number in the answer"),
        (NUMBER, "inf", "7", "no number in the answer"),
        (FIELD, "Paris", "Paris", "no JSON object"),
        (FIELD, '["Paris"]', "Paris", "no JSON object"),
        (FIELD, '{"reply": "Paris"}', "Paris", "the JSON object has no field answer"),
        (FIELD, '{"answer": "Par', "Paris", "the JSON object is malformed"),
        (FIELD, '{"answer": null}', "Paris", "differs from the ground truth"),
        (NUMBER_FIELD, '{"answer": true}', "1", "no number in the answer"),
        (NUMBER_FIELD, '{"answer": [1]}', "1", "no number in the answer"),
        (NUMBER_FIELD, '{"answer": null}', "0", "no number in the answer"),
        (NUMBER_FIELD, '{"answer": NaN}', "0", "no number in the answer"),
        (NUMBER_FIELD, '{"answer": 1e999}', "0", "no number in the answer"),
        (NUMBER_FIELD, f'{{"answer": {"9" * 5000}}}', "0", "no number in the answer"),
        (LETTER, "I do not know.", "B", "the pattern does not match"),
        (RegexGrader(kind="regex", pattern="x|(y)"), "x", "x", "the pattern's group captures nothing"),
    ],
)
def test_the_models_fault_scores_zero(
    grader: grading.DeterministicGrader, output: str, ground_truth: str, reason: str
) -> None:
    assert grade(grader, output=output, ground_truth=ground_truth) == Grade(0.0, reason)


@pytest.mark.parametrize("grader", DETERMINISTIC, ids=lambda grader: grader.kind)
@pytest.mark.parametrize("output", ["", " \n\t"])
def test_an_empty_answer_scores_zero(grader: grading.DeterministicGrader, output: str) -> None:
    assert grade(grader, output=output, ground_truth="7") == Grade(0.0, "the answer is empty")


@pytest.mark.parametrize(
    ("grader", "output", "ground_truth", "reason"),
    [
        *((grader, None, "7", "no answer was obtained") for grader in DETERMINISTIC),
        *((grader, "7", None, "no ground truth") for grader in DETERMINISTIC),
        *((grader, "7", "  ", "no ground truth") for grader in DETERMINISTIC),
        (NUMBER, "7", "seven", "the ground truth is not one number"),
        (NUMBER, "7", "between 6 and 8", "the ground truth is not one number"),
        (NUMBER, "7", "NaN", "the ground truth is not one number"),
        (NUMBER, "7", "1e999999999", "the ground truth is not one number"),
        (NUMBER_FIELD, "no JSON", "unknown", "the ground truth is not one number"),
        (RegexGrader(kind="regex", pattern="7", compare="number"), "7", "x", "the ground truth is not one number"),
    ],
)
def test_the_measurements_fault_is_not_gradable(
    grader: grading.DeterministicGrader, output: str | None, ground_truth: str | None, reason: str
) -> None:
    assert grade(grader, output=output, ground_truth=ground_truth) == Grade(None, reason)


def test_a_catastrophic_pattern_is_not_gradable_and_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(grading, "PATTERN_SECONDS", 0.05)
    pattern = RegexGrader(kind="regex", pattern=r"(a|aa)+$")
    started = time.monotonic()
    assert grade(pattern, output="a" * 60 + "b", ground_truth="a") == Grade(None, "the pattern took longer than 0.05 s")
    assert time.monotonic() - started < 5


@pytest.mark.parametrize(
    ("text", "numbers"),
    [
        ("18", [18]),
        ("-5 \N{MINUS SIGN}5 +5 $-5 -$5", [-5, -5, 5, -5, -5]),
        ("10-3, x-3, (2)-3", [10, 3, 3, 2, 3]),
        ("$18, 18 €, USD5, Rs500, £1,450,000.50", [18, 18, 5, 500, Fraction("1450000.50")]),
        ("1'000 65\N{NARROW NO-BREAK SPACE}960 65 960", [1000, 65960, 65, 960]),
        ("1.5e6 2E-3 1.5 x 10^6 1.5 \\times 10^{6}", [1500000, Fraction("0.002"), 1500000, 1500000]),
        ("3/4, 1 1/2, 1½, \\frac{3}{4}", [Fraction(3, 4), Fraction(3, 2), Fraction(3, 2), Fraction(3, 4)]),
        ("10/12/2024 2024-05-13", [10, 12, 2024, 2024, 5, 13]),
        ("\\$1{,}200 \\boxed{42} **7** 18.", [1200, 42, 7, 18]),
        ("25% 5k 3rd 12kg", [25, 5, 3, 12]),
        ("H2O, 50 m2, 1.234.567, 13.05.2024, gpt4", [50]),
        (".5 0.50 007", [Fraction(1, 2), Fraction(1, 2), 7]),
        ("1/0", [None]),
        ("9" * 500, [None]),
        ("none", []),
    ],
)
def test_numbers_are_read_as_models_write_them(text: str, numbers: list[Fraction | int | None]) -> None:
    assert numbers_in(text) == numbers
    assert last_number(text) == (numbers[-1] if numbers else None)


@given(
    number=st.decimals(min_value=-(10**12), max_value=10**12, places=3),
    noise=st.sampled_from(["{}", "is {}.", "${} USD"]),
)
def test_a_number_survives_thousands_separators_and_prose(number: Any, noise: str) -> None:
    assert only_number(noise.format(f"{number:,}")) == Fraction(str(number))


@given(st.text(alphabet="0123456789.,/-+eE$ x^{}\\\n", max_size=40))
def test_the_last_number_is_the_last_of_all(text: str) -> None:
    found = numbers_in(text)
    assert last_number(text) == (found[-1] if found else None)


@pytest.mark.parametrize(("output", "score"), [("0.11", 1.0), ("0.09", 1.0), ("0.1101", 0.0)])
def test_the_tolerance_is_met_exactly(output: str, score: float) -> None:
    tolerant = NumberGrader(kind="number", tolerance=0.01)
    assert grade(tolerant, output=output, ground_truth="0.10").score == score


def test_large_integers_are_told_apart() -> None:
    assert grade(NUMBER, output="12345678901234567890", ground_truth="12345678901234567891") == DIFFERS


@pytest.mark.parametrize(
    "output",
    [
        '{"answer": "18"}',
        '```json\n{"answer": "18"}\n```',
        'First 3, then 15.\n```json\n{"answer": "18"}\n```\nHope it helps {really}!',
        'I start with {"answer": "17"}, but no: {"answer": "18"}',
        'The final answer is {"answer": "18"} since {"a": 3}.',
        '{"reasoning": "a raw\nline break", "answer": "18"}',
        '{"reasoning": "\\(x = 18\\) costs \\$18", "answer": "18"}',
        '{"reasoning": ["a", "b",], "answer": "18",}',
        '{"reasoning": "he said "18" twice", "answer": "18"}',
        '{"reasoning": "cut off after", "answer": "18", "extra": "and th',
        '{"answer": $18, "unit": "USD',
        '{"answer": "17", "answer": "18"}',
        '{"weight": NaN, "answer": 18}',
        '{"answer": "18", "tree": ' + '{"a":' * 3000,
    ],
)
def test_the_score_forgives_the_form(output: str) -> None:
    assert grade(NUMBER_FIELD, output=output, ground_truth="18") == RIGHT


def test_a_value_that_is_cut_off_is_not_taken() -> None:
    assert grade(NUMBER_FIELD, output='{"reasoning": "x", "answer": "18', ground_truth="18").score == 0


def test_a_well_formed_object_without_the_field_is_not_searched_for_it() -> None:
    found = find_field('{"note": "say \\"answer\\": 18, not more", "draft": {"answer": 18}}', "answer")
    assert found.reason == "the JSON object has no field answer"


@pytest.mark.parametrize(
    ("path", "value"), [("a.b", 1), ("a.c.d", None), ("x.y", 2), ("a", {"b": 1, "c": {"d": None}})]
)
def test_dots_step_into_objects(path: str, value: object) -> None:
    found = find_field('{"a": {"b": 1, "c": {"d": null}}, "x.y": 2}', path)
    assert found == (value, None)


@pytest.mark.parametrize("path", ["a.b.c", "a.x", "x"])
def test_a_path_that_leads_nowhere_is_missing(path: str) -> None:
    assert find_field('{"a": {"b": 1}}', path).reason == f"the JSON object has no field {path}"


@given(value=st.text(), noise=st.text(alphabet="ab {}\n`.", max_size=30))
def test_any_encoded_text_is_found_again(value: str, noise: str) -> None:
    encoded = json.dumps({"answer": value}, ensure_ascii=False)
    assert find_field(f"{noise} ```json\n{encoded}\n``` {noise}", "answer") == (value, None)


@given(
    grader=st.sampled_from(DETERMINISTIC),
    output=st.one_of(st.none(), st.text(), st.text(alphabet='{}[]":,\\ answer018.-/eE$\n`', max_size=80)),
    ground_truth=st.one_of(st.none(), st.text(max_size=5), st.just("18")),
)
def test_every_grade_is_a_score_or_a_reason(
    grader: grading.DeterministicGrader, output: str | None, ground_truth: str | None
) -> None:
    score, reason = grade(grader, output=output, ground_truth=ground_truth)
    assert (score is None and reason) or score in (0.0, 1.0)
    assert (score == 1.0) == (reason is None)


@pytest.mark.parametrize(
    "text", ["{" * 100_000, '{"a":' * 50_000, '"answer": ' * 20_000, "9" * 200_000, "1 1/" * 50_000, "\\" * 100_000]
)
@pytest.mark.parametrize("grader", [NUMBER_FIELD, NUMBER, TEXT], ids=lambda grader: grader.kind)
def test_hostile_text_ends_soon(grader: grading.DeterministicGrader, text: str) -> None:
    started = time.monotonic()
    assert grade(grader, output=text, ground_truth="18").score == 0
    assert time.monotonic() - started < 5


@given(st.text(alphabet=st.characters(max_codepoint=127)))
def test_case_and_outer_space_do_not_count(text: str) -> None:
    assert normalised(f"\n {text.upper()}\t") == normalised(text.lower())


@pytest.mark.parametrize(
    "output",
    ['{"answer": "18"}', ' {"answer": null} \n', '```json\n{"answer": 1}\n```', 'So:\n```\n{"answer": 1}\n```\nDone.'],
)
def test_a_kept_contract(output: str) -> None:
    contract = Contract(json_object=True, required=["answer"])
    assert check_contract(contract, output, answered=True) == (True, None)


@pytest.mark.parametrize(
    ("output", "reason"),
    [
        ("", "the answer is empty"),
        (None, "the answer is empty"),
        ("Paris", "no JSON object"),
        ('["answer"]', "no JSON object"),
        ('So {"answer": 1}', "prose around the JSON object and no code fence"),
        (
            'a\n```\n{"answer": 1}\n```\n```\n{"answer": 1}\n```',
            "2 code fences, one is needed",
        ),
        ('{"answer": 1} and more', "not valid JSON: Extra data"),
        ('{"answer": "a\nb"}', "not valid JSON: Invalid control character at"),
        ('{"answer": "\\(x\\)"}', "not valid JSON: Invalid \\escape"),
        ('{"answer": NaN}', "not valid JSON: NaN is no JSON number"),
        ('{"answer": 1, "answer": 1}', "not valid JSON: a key stands twice"),
        ('{"answer": ' + "[" * 100_000, "not valid JSON: nested too deeply"),
        (
            '{"answer": ' + "9" * 5000 + "}",
            "not valid JSON: Exceeds the limit (4300 digits) for integer string conversion",
        ),
        ("```\n[{}]\n```", "valid JSON, but not an object"),
        ('{"answers": 1}', "missing answer, cause.why"),
        ('{"answer": 1, "cause": 2}', "missing cause.why"),
    ],
)
def test_a_broken_contract(output: str | None, reason: str) -> None:
    contract = Contract(json_object=True, required=["answer", "cause.why"])
    kept, found = check_contract(contract, output, answered=True)
    assert kept is False
    assert found is not None
    assert found.removesuffix(": value has 5000 digits") == reason


@pytest.mark.parametrize("output", ['```json\n{"a": 1}\n```', 'So: {"a": 1}'])
def test_a_bare_contract_is_broken_by_anything_around_the_object(output: str) -> None:
    bare = Contract(json_object=True, bare=True)
    assert check_contract(bare, '{"a": 1}', answered=True).kept is True
    assert check_contract(bare, output, answered=True) == (False, "a code fence or prose around the JSON object")


def test_a_contract_is_not_measured_without_an_answer_or_a_declaration() -> None:
    assert check_contract(Contract(json_object=True), None, answered=False) == (None, "no answer was obtained")
    assert check_contract(Contract(), "{}", answered=True) == (None, "no contract is declared")


def test_contract_rows_keep_the_answers_order() -> None:
    found = check_contract_rows(Contract(json_object=True), answers("ok", "failed", "prose"))
    assert found.rows() == [
        ("ok", True, None),
        ("failed", None, "no answer was obtained"),
        ("prose", False, "no JSON object"),
    ]


OUTPUTS = {"ok": '{"answer": "18"}', "wrong": '{"answer": "17"}', "prose": "eighteen", "silent": None}


def answers(*item_ids: str) -> pl.DataFrame:
    rows = [
        (name, "answered", None, OUTPUTS[name]) if name in OUTPUTS else (name, "failed", "HTTP 500", None)
        for name in item_ids
    ]
    return pl.DataFrame(rows, schema=dict.fromkeys(["item_id", "status", "reason", "output"], pl.String), orient="row")


def golden(*item_ids: str, ground_truth: str | None = "18") -> pl.DataFrame:
    rows = [(name, ground_truth) for name in item_ids]
    return pl.DataFrame(rows, schema={"id": pl.String, "ground_truth": pl.String}, orient="row")


def judged(**scores: float | None) -> pl.DataFrame:
    rows = [(name, score, "HTTP 500" if score is None else None) for name, score in scores.items()]
    schema = {"item_id": pl.String, "score": pl.Float64, "reason": pl.String}
    return pl.DataFrame(rows, schema=schema, orient="row")


def test_rows_stand_in_the_golden_order_and_none_is_lost() -> None:
    found = grade_rows(
        [NUMBER_FIELD],
        answers("silent", "failed", "wrong", "ok"),
        golden("ok", "wrong", "failed", "absent", "silent"),
        judged={},
    )
    assert found.rows() == [
        ("ok", 1.0, None, '{"json_field:answer":1.0}'),
        ("wrong", 0.0, "json_field:answer: differs from the ground truth", '{"json_field:answer":0.0}'),
        ("failed", None, "no answer was obtained: HTTP 500", '{"json_field:answer":null}'),
        ("absent", None, "no answer was obtained: no row", '{"json_field:answer":null}'),
        ("silent", 0.0, "json_field:answer: the answer is empty", '{"json_field:answer":0.0}'),
    ]


def test_a_score_is_the_mean_of_its_graders() -> None:
    graders: list[Grader] = [NUMBER_FIELD, FAITHFUL]
    name = grader_name(FAITHFUL, 1)
    found = grade_rows(graders, answers("ok"), golden("ok"), judged={name: judged(ok=0.5)})
    assert found.rows() == [("ok", 0.75, None, f'{{"json_field:answer":1.0,"{name}":0.5}}')]


@pytest.mark.parametrize(
    ("frame", "reason"),
    [
        (judged(ok=None), "HTTP 500"),
        (judged(ok=math.nan), "the judge gave nan, a score in [0, 1] is needed"),
        (judged(ok=math.inf), "the judge gave inf, a score in [0, 1] is needed"),
        (judged(ok=1.5), "the judge gave 1.5, a score in [0, 1] is needed"),
        (judged(other=1.0), "the judge did not score this item"),
        (judged().with_columns(reason=pl.lit(None)), "the judge did not score this item"),
    ],
)
def test_one_grader_that_is_not_gradable_leaves_no_score(frame: pl.DataFrame, reason: str) -> None:
    name = grader_name(FAITHFUL, 1)
    found = grade_rows([NUMBER_FIELD, FAITHFUL], answers("ok"), golden("ok"), judged={name: frame})
    assert found.rows() == [("ok", None, f"{name}: {reason}", f'{{"json_field:answer":1.0,"{name}":null}}')]


def test_a_missing_judgement_of_a_failed_answer_blames_the_answer() -> None:
    found = grade_rows([FAITHFUL], answers("failed"), golden("failed"), judged={})
    assert found["reason"].to_list() == ["no answer was obtained: HTTP 500"]


def test_no_ground_truth_is_not_gradable_in_rows_either() -> None:
    found = grade_rows([NUMBER_FIELD], answers("ok"), golden("ok", ground_truth=None), judged={})
    assert found.rows() == [("ok", None, "json_field:answer: no ground truth", '{"json_field:answer":null}')]


def test_names_are_unique_whatever_the_list() -> None:
    graders: list[Grader] = [FIELD, NUMBER_FIELD, TEXT, TEXT, FAITHFUL]
    names = [grader_name(grader, index) for index, grader in enumerate(graders)]
    assert names == ["json_field:answer", "json_field:answer#2", "text#3", "text#4", "ragas:faithfulness#5"]


def test_no_rows_give_no_rows() -> None:
    assert grade_rows([TEXT], answers(), golden(), judged={}).schema == grading.GRADES
    assert check_contract_rows(Contract(), answers()).schema == grading.CONTRACT_CHECKS


@pytest.mark.parametrize("grader", [NUMBER_FIELD, NUMBER, TEXT], ids=lambda grader: grader.kind)
def test_twenty_thousand_rows_take_seconds(grader: Grader) -> None:
    text = json.dumps({"reasoning": "16 - 3 - 4 = 9 eggs at $2 each. " * 15, "answer": "18"}, indent=4)
    item_ids = [f"item-{index}" for index in range(20_000)]
    frame = pl.DataFrame({"item_id": item_ids}).with_columns(
        status=pl.lit("answered"), reason=pl.lit(None, pl.String), output=pl.lit(f"```json\n{text}\n```")
    )
    started = time.process_time()  # of the process, so that a busy machine does not fail it
    found = grade_rows([grader], frame, golden(*item_ids), judged={})
    assert time.process_time() - started < 10
    assert found["score"].null_count() == 0


@pytest.mark.parametrize(
    ("context", "passages"),
    [
        (None, ()),
        ("null", ()),
        ('""', ()),
        ("[]", ()),
        ('"one"', ("one",)),
        ("plain words", ("plain words",)),
        ('["one", " ", "two"]', ("one", "two")),
        ('[{"text": "one", "score": 1}, {"content": "two"}]', ("one", "two")),
        ('{"text": "one"}', ("one",)),
        ('{"status": "shipped", "order": 5}', ('{"order":5,"status":"shipped"}',)),
    ],
)
def test_a_context_becomes_passages(context: str | None, passages: tuple[str, ...]) -> None:
    assert contexts_of(context) == passages


@pytest.mark.parametrize(
    ("prompt", "question"),
    [
        ('[{"role":"user","content":"a"},{"role":"assistant","content":"b"},{"role":"user","content":"c"}]', "c"),
        ('[{"role":"user","content":[{"type":"text","text":"a"},{"type":"image_url"},{"text":"b"}]}]', "a\nb"),
        ('[{"role":"system","content":"a"}]', None),
        ('[{"role":"user","content":null}]', None),
        ("not JSON", None),
        (None, None),
    ],
)
def test_the_question_is_the_last_user_message(prompt: str | None, question: str | None) -> None:
    assert question_of(prompt) == question


def test_only_what_was_answered_is_judged_and_comes_back_as_a_table() -> None:
    prompts = golden("ok", "failed", "absent", "silent").with_columns(
        source_prompt=pl.lit('[{"role":"user","content":"q"}]'), input_context=pl.lit('["c"]')
    )
    items = judge_items(answers("silent", "failed", "ok"), prompts)
    assert items == [JudgeItem("ok", "q", ("c",), '{"answer": "18"}'), JudgeItem("silent", "q", ("c",), "")]
    frame = judged_frame(items, [Grade(0.5, None), Grade(None, "HTTP 500")])
    assert frame.rows() == [("ok", 0.5, None), ("silent", None, "HTTP 500")]
