"""What a feedback may be over the wire, and what is told of one that is none."""

from __future__ import annotations

import json

import pytest

from anven_pipelines.gateway.feedback import Said
from anven_pipelines.gateway.feedback_form import LONGEST_ID, Feedback, read_feedback
from anven_pipelines.gateway.refusals import Refusal


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ({"score": 1}, Said(1.0, None, None)),
        ({"score": 0.25, "outcome": "resolved"}, Said(0.25, "resolved", None)),
        ({"score": None, "safe": False}, Said(None, None, safe=False)),
    ],
)
def test_a_good_one(body: dict[str, object], said: Said) -> None:
    found = read_feedback(json.dumps({"request_id": "a", **body}).encode(), key="k")
    assert found == Feedback("a", said, "k")
    assert isinstance(found, Feedback)
    assert not isinstance(found.said.score, int)


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (b"[]", "the body is a list; one JSON object is needed"),
        (b' "x"', "the body is a text"),
        (b"null", "the body is null"),
        (b"-1", "the body is a number"),
        (b"request_id=x", "the body is no JSON"),
        (b"\xff", "the body is no JSON"),
        (b"", "the body is no JSON object: "),
        (b'{"request_id": "a"', "the body is no JSON object: "),
        (b'{"request_id": "\xff", "score": 1}', "the body is no JSON object: "),
        (b'{"request_id": "a", "score": NaN}', "NaN is no number of JSON's"),
        (b'{"request_id": "a", "score": -Infinity}', "-Infinity is no number of JSON's"),
        (b'{"request_id": "a", "score": 1, "score": 0}', "a name stands there twice"),
        (b'{"a":' * 100_000, "the body is no JSON object: "),
        (b'{"request_id": "a", "score": 1%s}' % (b"0" * 5000), "the body is no JSON object: "),
    ],
)
def test_a_body_that_is_no_json_object_is_a_bad_request(body: bytes, message: str) -> None:
    found = read_feedback(body, key=None)
    assert isinstance(found, Refusal)
    assert (found.status, found.code) == (400, "invalid_json")
    assert message in found.message


@pytest.mark.parametrize(
    ("body", "param", "message"),
    [
        ({"score": 2}, "score", "score is 2; a number from 0 (worst) to 1 (best) is needed"),
        ({"score": -0.001}, "score", "score is -0.001; a number"),
        ({"score": "1"}, "score", "score is a text of 1 characters; a number"),
        ({"score": True}, "score", "score is true; a number"),
        ({"score": [1]}, "score", "score is a list; a number"),
        ({"safe": "yes"}, "safe", "safe is a text of 3 characters; true or false is needed"),
        ({"safe": 1}, "safe", "safe is 1; true or false is needed"),
        ({"outcome": "call Ada at 5"}, "outcome", "outcome is a text of 13 characters; a name of at most 64"),
        ({"outcome": {}}, "outcome", "outcome is an object; a name"),
        ({"scores": 1, "score": 1}, "scores", "scores is unknown; known are request_id, score, outcome, safe"),
        ({"request_id": 3, "score": 1}, "request_id", "request_id is 3; the answer's x-litellm-call-id"),
        ({"request_id": None, "score": 1}, "request_id", "request_id is null; "),
        ({"request_id": "", "score": 1}, "request_id", "request_id is a text of 0 characters; "),
        ({"request_id": "a\x00", "score": 1}, "request_id", "request_id is a text of 2 characters; "),
        ({"request_id": "\ud800", "score": 1}, "request_id", "request_id is a text of 1 characters; "),
        ({"request_id": "a\n", "score": 1}, "request_id", "request_id is a text of 2 characters; "),
        ({"request_id": "y" * 257, "score": 1}, "request_id", "request_id is a text of 257 characters; "),
        ({}, "score", "nothing is said of the answer; at least one of score, outcome and safe is needed"),
        ({"score": None}, "score", "nothing is said"),
    ],
)
def test_what_is_no_feedback_is_told_with_its_field(body: dict[str, object], param: str, message: str) -> None:
    found = read_feedback(json.dumps({"request_id": "a", **body}).encode(), key=None)
    assert isinstance(found, Refusal)
    assert (found.status, found.code, found.param) == (422, "invalid_feedback", param)
    assert found.message.startswith(message)


@pytest.mark.parametrize("request_id", ["y" * LONGEST_ID, "a\tb", "a\xa0b", "\x80\xad\xff", "日本"])
def test_each_id_that_a_client_can_choose_is_one(request_id: str) -> None:
    """LiteLLM takes what a header can carry, and asks for no more than a length."""
    constants = pytest.importorskip("litellm.constants")
    assert constants.MAX_LITELLM_CALL_ID_LENGTH == LONGEST_ID
    found = read_feedback(json.dumps({"request_id": request_id, "score": 1}).encode(), key=None)
    assert isinstance(found, Feedback)
    assert found.request_id == request_id


@pytest.mark.parametrize("key", ["", "k" * 201, "a\xa0b"])
def test_a_key_that_is_none_is_told(key: str) -> None:
    found = read_feedback(b'{"request_id": "a", "score": 1}', key=key)
    assert isinstance(found, Refusal)
    assert found.message == f"Idempotency-Key has {len(key)} characters; 1 to 200 printable ones are needed"


def test_a_number_beyond_all_numbers_is_refused() -> None:
    found = read_feedback(b'{"request_id": "a", "score": 1e999}', key=None)
    assert isinstance(found, Refusal)
    assert found.message.startswith("score is beyond what a number can be; ")


def test_all_that_is_wrong_is_told_at_once_and_no_text_is_quoted() -> None:
    found = read_feedback(b'{"score": 3, "outcome": "call Ada", "thumb": 1}', key="")
    assert isinstance(found, Refusal)
    told = found.message.split("; ")
    for each in ("thumb is unknown", "request_id is missing", "score is 3", "Idempotency-Key has 0 characters"):
        assert each in told
    assert "Ada" not in found.message
