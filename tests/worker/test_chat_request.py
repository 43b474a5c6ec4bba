from __future__ import annotations

from typing import Any

import pytest

from anven_pipelines.worker.chat_request import engine_request
from anven_pipelines.worker.engine import UnsupportedRequest

ASK = [{"role": "user", "content": "Hi"}]


def test_every_parameter_reaches_the_engine() -> None:
    schema = {"type": "object"}
    tool = {"type": "function", "function": {"name": "look", "parameters": {}}}
    request = engine_request(
        ASK,
        {
            "temperature": 0,
            "top_p": 0.5,
            "top_k": 3,
            "seed": 7,
            "max_completion_tokens": 9,
            "stop": "END",
            "logprobs": True,
            "top_logprobs": 2,
            "presence_penalty": 0.5,
            "frequency_penalty": -1,
            "response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}},
            "tools": [tool],
            "tool_choice": "auto",
            "n": 1,
            "user": "u",
            "stream": True,
            "store": None,
        },
    )
    sampling = request.sampling
    assert (sampling.temperature, sampling.top_p, sampling.top_k, sampling.seed) == (0, 0.5, 3, 7)
    assert (sampling.presence_penalty, sampling.frequency_penalty) == (0.5, -1)
    assert (request.max_tokens, request.stop, request.top_logprobs) == (9, ("END",), 2)
    assert (request.response_format, request.tools) == (schema, (tool,))


def test_without_parameters_the_defaults_are_openais() -> None:
    request = engine_request(ASK, {})
    assert request.sampling.temperature == 1.0
    assert (request.max_tokens, request.stop, request.top_logprobs, request.response_format) == (None, (), None, "text")


def test_messages_are_written_as_templates_take_them() -> None:
    call = {"id": "c", "type": "function", "function": {"name": "look", "arguments": '{"at": 1}'}}
    request = engine_request(
        [
            {"role": "developer", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]},
            {"role": "assistant", "content": None, "tool_calls": [call]},
            {"role": "tool", "tool_call_id": "c", "content": "2"},
        ],
        {},
    )
    system, assistant, tool = request.messages
    assert (system["role"], system["content"]) == ("system", "a\nb")
    assert assistant["content"] == ""
    assert assistant["tool_calls"][0]["function"]["arguments"] == {"at": 1}
    assert tool["tool_call_id"] == "c"


@pytest.mark.parametrize(
    ("messages", "params", "message"),
    [
        (ASK, {"n": 2}, "n is 2, which the engine cannot carry out"),
        (ASK, {"temperature": "hot"}, "parameter temperature: "),
        (ASK, {"temperature": 3}, "parameter temperature: "),
        (ASK, {"max_tokens": 0}, "parameter max_tokens: "),
        (ASK, {"max_tokens": 1, "max_completion_tokens": 2}, "differ"),
        (ASK, {"stop": [""]}, "empty text"),
        (ASK, {"top_logprobs": 1}, "needs logprobs"),
        (ASK, {"unheard_of": 1}, "parameter unheard_of: "),
        (ASK, {"response_format": {"type": "grammar"}}, "is none of text, json_object and json_schema"),
        (ASK, {"tools": [{}], "tool_choice": "required"}, "lets the model choose"),
        (["Hi"], {}, r"messages\[0\] is no object with a role"),
        ([{"content": "Hi"}], {}, r"messages\[0\] is no object with a role"),
        ([*ASK, {"role": "user", "content": [{"type": "image_url"}]}], {}, r"messages\[1\] holds something else"),
        ([{"role": "assistant", "tool_calls": [{"function": {"arguments": "{"}}]}], {}, "cannot be read"),
        ([{"role": "assistant", "tool_calls": [{}]}], {}, "cannot be read"),
    ],
)
def test_what_cannot_be_asked_is_refused(messages: list[Any], params: dict[str, Any], message: str) -> None:
    with pytest.raises(UnsupportedRequest, match=message):
        engine_request(messages, params)
