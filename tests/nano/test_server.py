"""The OpenAI-compatible server: a real process on loopback, asked as its users ask it."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from typing import TYPE_CHECKING, Any, Final

import httpx
import openai
import pytest

from anven_pipelines.domain.errors import UnavailableService
from anven_pipelines.nano.models import model_folder
from anven_pipelines.nano.prompts import anven_messages
from anven_pipelines.nano.server import bind, main
from anven_pipelines.nano.tasks import generate
from anven_pipelines.worker.model_files import ModelFiles
from tests.nano_server import eventually, nano_server

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.nano_server import NanoServer

ITEMS: Final = generate("golden", 9, seed=11)
PROMPTS: Final = [anven_messages(item) for item in ITEMS]
TOOL: Final = next(anven_messages(item) for item in ITEMS if item.task == "tool")  # the longest answers
RAMBLING: Final[dict[str, Any]] = {"temperature": 2, "seed": 1, "max_tokens": 120}


@pytest.fixture(scope="module")
def client(server: NanoServer) -> Iterator[openai.OpenAI]:
    """Speak to the shared server as the openai package does."""
    with openai.OpenAI(base_url=server.url, api_key="none", max_retries=0) as made:
        yield made


def body(prompt: Any = PROMPTS[0], **changed: Any) -> dict[str, Any]:
    """Return a request."""
    return {"model": "anven-nano", "messages": prompt, "temperature": 0, "max_tokens": 60, **changed}


def post(server: NanoServer, **changed: Any) -> httpx.Response:
    """Send a request."""
    return server.http.post(f"{server.url}/chat/completions", json=body(**changed))


def text_of(response: httpx.Response) -> str:
    """Return the answer's text."""
    return str(response.raise_for_status().json()["choices"][0]["message"]["content"])


def events(response: httpx.Response) -> list[dict[str, Any]]:
    """Return the JSON of a stream's events; the last one must be [DONE]."""
    lines = [line.removeprefix("data: ") for line in response.read().decode().split("\n\n") if line]
    assert lines.pop() == "[DONE]"
    return [json.loads(line) for line in lines]


def test_a_stream_is_the_answer_in_pieces(client: openai.OpenAI) -> None:
    for prompt in PROMPTS:
        whole = client.chat.completions.create(**body(prompt))
        stream = client.chat.completions.create(**body(prompt), stream=True, stream_options={"include_usage": True})
        chunks = list(stream)
        *pieces, last = chunks
        assert "".join(piece.choices[0].delta.content or "" for piece in pieces) == whole.choices[0].message.content
        assert pieces[0].choices[0].delta.role == "assistant"
        assert [piece.choices[0].finish_reason for piece in pieces if piece.choices[0].finish_reason] == [
            whole.choices[0].finish_reason
        ]
        assert last.usage == whole.usage
        assert last.choices == []
        assert {(chunk.id, chunk.model, chunk.created) for chunk in chunks} == {(last.id, "anven-nano", last.created)}


def test_an_answer_can_be_sent_back_as_the_turn_before_the_next_question(client: openai.OpenAI) -> None:
    messages: list[Any] = [*PROMPTS[0]]
    first = client.chat.completions.create(**body(messages))
    messages += [first.choices[0].message, PROMPTS[0][-1]]
    second = client.chat.completions.create(**body(messages))
    assert first.usage is not None
    assert second.usage is not None
    assert second.usage.prompt_tokens > first.usage.prompt_tokens + first.usage.completion_tokens


def test_usage_is_what_the_tokenizer_counts(client: openai.OpenAI) -> None:
    files = ModelFiles.read(model_folder("anven-nano"))
    for prompt in PROMPTS:
        made = client.chat.completions.create(**body(prompt), logprobs=True, top_logprobs=2)
        logprobs = made.choices[0].logprobs
        assert made.usage is not None
        assert logprobs is not None
        assert logprobs.content is not None
        assert made.usage.prompt_tokens == len(files.prompt_tokens(prompt))
        assert made.usage.completion_tokens == len(logprobs.content)
        assert made.usage.total_tokens == made.usage.prompt_tokens + made.usage.completion_tokens
        read = b"".join(bytes(token.bytes or []) for token in logprobs.content).decode()
        assert read == made.choices[0].message.content
        assert all(len(token.top_logprobs) == 2 for token in logprobs.content)


def test_usage_comes_with_a_stream_only_where_it_is_asked_for(server: NanoServer) -> None:
    assert not any("usage" in event for event in events(post(server, stream=True)))
    asked = events(post(server, stream=True, stream_options={"include_usage": True}))
    assert [event["usage"] is None for event in asked] == [True] * (len(asked) - 1) + [False]


LITELLM: Final = """
import json, sys, litellm
litellm.suppress_debug_info = True
ask = json.load(sys.stdin)
try:
    litellm.completion(**{**ask, "max_tokens": 600})
except litellm.ContextWindowExceededError:
    whole, pieces = litellm.completion(**ask), list(litellm.completion(**ask, stream=True))
    streamed = "".join(piece.choices[0].delta.content or "" for piece in pieces)
    print(json.dumps([whole.choices[0].message.content, streamed, whole.usage.prompt_tokens]))
"""


def test_litellm_takes_the_server_for_an_openai_endpoint(server: NanoServer) -> None:
    ask = {**body(), "model": "openai/anven-nano", "api_base": server.url, "api_key": "none", "num_retries": 0}
    # A process of its own, as LiteLLM leaves event loops and sockets open.
    ended = subprocess.run(
        [sys.executable, "-c", LITELLM],
        input=json.dumps(ask),
        env={**os.environ, "LITELLM_LOCAL_MODEL_COST_MAP": "True"},
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    expected = post(server).json()
    text = expected["choices"][0]["message"]["content"]
    assert json.loads(ended.stdout) == [text, text, expected["usage"]["prompt_tokens"]]


def test_the_first_token_comes_before_the_answer_is_whole(server: NanoServer) -> None:
    def length(prompt: list[dict[str, str]]) -> int:
        return int(post(server, prompt=prompt, max_tokens=300).json()["usage"]["completion_tokens"])

    nonsense = [[{"role": "user", "content": "x" * times}] for times in (20, 50, 100, 200)]
    longest = max([TOOL, *nonsense], key=length)
    asked = body(longest, max_tokens=300, stream=True)
    begun = time.perf_counter()
    with server.http.stream("POST", f"{server.url}/chat/completions", json=asked) as response:
        pieces = [(time.perf_counter() - begun, piece) for piece in response.iter_raw()]
    assert b'"content":' in pieces[0][1]
    assert b"[DONE]" not in pieces[0][1]
    assert pieces[0][0] < pieces[-1][0]


def test_many_at_once_get_the_answers_that_each_gets_alone(server: NanoServer) -> None:
    alone = [text_of(post(server, prompt=prompt)) for prompt in PROMPTS]
    with ThreadPoolExecutor(16) as pool:
        together = list(pool.map(lambda prompt: text_of(post(server, prompt=prompt)), PROMPTS * 4))
    assert together == alone * 4
    assert eventually(lambda: server.state()["in_flight"] == 0)


def test_parameters_reach_the_model(server: NanoServer) -> None:
    drawn = [text_of(post(server, prompt=TOOL, **{**RAMBLING, "seed": seed})) for seed in (1, 1, 2, 3)]
    assert drawn[0] == drawn[1]
    assert len(set(drawn)) > 1
    greedy = text_of(post(server, prompt=TOOL))
    assert text_of(post(server, prompt=TOOL, **RAMBLING, top_k=1)) == greedy
    assert text_of(post(server, prompt=TOOL, stop=greedy[5:8])) == greedy.partition(greedy[5:8])[0]
    short = post(server, prompt=TOOL, max_tokens=None, max_completion_tokens=2).json()
    assert (short["usage"]["completion_tokens"], short["choices"][0]["finish_reason"]) == (2, "length")


def test_text_parts_and_neutral_parameters_change_nothing(server: NanoServer) -> None:
    system, user = PROMPTS[0]
    parts = [{**system, "role": "developer"}, {"role": "user", "content": [{"type": "text", "text": user["content"]}]}]
    neutral = {"n": 1, "tools": [], "presence_penalty": 0.0, "logit_bias": None, "user": "u", "store": False}
    assert text_of(post(server, prompt=parts, **neutral)) == text_of(post(server))


def test_json_mode_says_where_the_model_wrote_none(server: NanoServer) -> None:
    form = {"response_format": {"type": "json_object"}}
    made = post(server, prompt=TOOL, **form).json()
    json.loads(made["choices"][0]["message"]["content"])
    assert "warnings" not in made
    rambling = post(server, **RAMBLING, **form).json()
    assert rambling["warnings"] == ["response_format asks for a JSON object; the model's answer is none"]
    streamed = events(post(server, **RAMBLING, **form, stream=True))
    assert ["warnings" in event for event in streamed] == [False] * (len(streamed) - 1) + [True]


@pytest.mark.parametrize(
    ("changed", "status", "param", "code"),
    [
        ({"model": "gpt-9"}, 404, "model", "model_not_found"),
        ({"max_tokens": 600}, 400, "messages", "context_length_exceeded"),
        ({"prompt": [{"role": "user", "content": "seven " * 600}]}, 400, "messages", "context_length_exceeded"),
        ({"max_tokens": 600, "stream": True}, 400, "messages", "context_length_exceeded"),
        ({"made_up": 1}, 400, "made_up", "unknown_parameter"),
        ({"n": 2}, 400, "n", "unsupported_parameter"),
        ({"tools": [{"type": "function"}]}, 400, "tools", "unsupported_parameter"),
        ({"presence_penalty": 0.5}, 400, "presence_penalty", "unsupported_parameter"),
        ({"temperature": "0"}, 400, "temperature", "invalid_value"),
        ({"temperature": 2.1}, 400, "temperature", "invalid_value"),
        ({"top_p": 0}, 400, "top_p", "invalid_value"),
        ({"max_tokens": 0}, 400, "max_tokens", "invalid_value"),
        ({"max_completion_tokens": 5}, 400, "max_tokens", None),
        ({"top_logprobs": 2}, 400, "top_logprobs", None),
        ({"logprobs": True, "top_logprobs": 21}, 400, "top_logprobs", "invalid_value"),
        ({"stop": ["a", ""]}, 400, "stop", None),
        ({"stop": 5}, 400, "stop", "invalid_value"),
        ({"prompt": []}, 400, "messages", "invalid_value"),
        ({"prompt": [{"role": "robot", "content": "a"}]}, 400, "messages[0].role", "invalid_value"),
        ({"prompt": [{"role": "tool", "content": "a"}]}, 400, "messages[0].role", "invalid_value"),
        ({"prompt": [{"role": "user"}]}, 400, "messages[0].content", "missing_required_parameter"),
        ({"prompt": [{"role": "user", "content": [{"type": "image_url"}]}]}, 400, "messages[0].content[0].type", None),
        ({"prompt": [{"role": "user", "content": "\ud800"}]}, 400, None, None),
        ({"response_format": {"type": "json_schema"}}, 400, "response_format.type", "invalid_value"),
        ({"stream_options": {"more": True}}, 400, "stream_options.more", "unknown_parameter"),
    ],
)  # fmt: skip
def test_what_cannot_be_done_is_refused_in_openais_form(
    server: NanoServer, changed: dict[str, Any], status: int, param: str | None, code: str | None
) -> None:
    response = server.http.post(f"{server.url}/chat/completions", content=json.dumps(body(**changed)))
    error = response.json()["error"]
    assert response.status_code == status
    assert error["type"] == "invalid_request_error"
    assert error["message"]
    assert param is None or error["param"] == param
    assert code is None or error["code"] == code


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"null", b"\xff", b"[" * 100_000, b'{"model": NaN}'])
def test_a_body_that_is_no_request_is_refused(server: NanoServer, content: bytes) -> None:
    response = server.http.post(f"{server.url}/chat/completions", content=content)
    assert response.status_code == 400
    assert response.json()["error"]["type"] == "invalid_request_error"


def test_the_openai_client_raises_its_own_errors(client: openai.OpenAI) -> None:
    with pytest.raises(openai.NotFoundError):
        client.chat.completions.create(**{**body(), "model": "other"})
    with pytest.raises(openai.BadRequestError) as raised:
        client.chat.completions.create(**{**body(), "max_tokens": 600})
    assert raised.value.code == "context_length_exceeded"


def test_other_paths_methods_and_sizes_get_openais_form_too(server: NanoServer) -> None:
    too_long = server.http.post(f"{server.url}/chat/completions", content=b" " * (1 << 20) + b"{}")
    answers = [server.http.get(f"{server.url}/nowhere"), server.http.get(f"{server.url}/chat/completions"), too_long]
    assert [answer.status_code for answer in answers] == [404, 405, 413]
    assert all(set(answer.json()["error"]) == {"message", "type", "param", "code"} for answer in answers)


def test_models_and_health_say_what_is_served(server: NanoServer, client: openai.OpenAI) -> None:
    assert [model.id for model in client.models.list()] == ["anven-nano"]
    text_of(post(server))
    state = server.state()
    assert (state["status"], state["model"], state["context_length"]) == ("ok", "anven-nano", 512)
    assert state["faults"] == {}
    assert state["outcomes"]["answered"] > 0


def in_background(server: NanoServer, **changed: Any) -> tuple[threading.Thread, list[httpx.Response]]:
    """Send a request from a thread."""
    got: list[httpx.Response] = []
    thread = threading.Thread(target=lambda: got.append(post(server, **changed)))
    thread.start()
    return thread, got


@pytest.fixture(scope="module")
def full() -> Iterator[NanoServer]:
    """Serve two requests at most, and let them wait for a minute."""
    with nano_server("--capacity", "2", "--fault-delay-ms", "60000") as running:
        yield running


@pytest.mark.parametrize("stream", [False, True])
def test_a_full_queue_answers_429_and_a_client_that_leaves_frees_its_place(full: NanoServer, stream: bool) -> None:
    before = full.state()["outcomes"]
    request = json.dumps(body(stream=stream)).encode()
    head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Length: {len(request)}\r\n\r\n".encode()
    address = ("127.0.0.1", port_of(full))
    with socket.create_connection(address) as staying:
        with socket.create_connection(address) as leaving:
            for connection in (staying, leaving):
                connection.sendall(head + request)
            assert eventually(lambda: full.state()["in_flight"] == 2)
            refused = post(full)
            assert refused.status_code == 429
            assert int(refused.headers["retry-after"]) >= 1
            assert refused.json()["error"]["type"] == "rate_limit_error"
        assert eventually(lambda: full.state()["in_flight"] == 1)
    assert eventually(lambda: full.state()["in_flight"] == 0)
    assert full.state()["outcomes"] == {
        **before,
        "refused_busy": before["refused_busy"] + 1,
        "unfinished": before["unfinished"] + 2,
    }


def test_sigterm_ends_the_stream_in_flight_and_exits_with_0() -> None:
    with nano_server("--fault-delay-ms", "500") as server:
        thread, got = in_background(server, prompt=TOOL, stream=True)
        assert eventually(lambda: server.state()["in_flight"] == 1)
        server.process.send_signal(signal.SIGTERM)
        assert eventually(lambda: not is_reachable(server))
        thread.join(30)
        assert events(got[0])[-1]["choices"][0]["finish_reason"] == "stop"
        assert server.process.wait(30) == 0
        assert server.process.stderr is not None
        assert server.process.stderr.read() == ""


def port_of(server: NanoServer) -> int:
    """Return the port that a server listens on."""
    return httpx.URL(server.url).port or 0


def is_reachable(server: NanoServer) -> bool:
    """Say whether a new connection is taken."""
    try:
        socket.create_connection(("127.0.0.1", port_of(server))).close()
    except OSError:
        return False
    return True


def test_two_servers_at_once_answer_as_their_own_models(server: NanoServer) -> None:
    with nano_server(model="legacy-nano") as legacy:
        assert legacy.url != server.url
        own, other = post(legacy, model="legacy-nano"), post(legacy)
        assert own.json()["model"] == "legacy-nano"
        assert own.json()["system_fingerprint"] != post(server).json()["system_fingerprint"]
        assert other.status_code == 404


def test_a_server_stops_when_whoever_started_it_is_gone() -> None:
    with nano_server() as server:
        assert server.process.stdin is not None
        server.process.stdin.close()
        assert server.process.wait(30) == 0


def test_faults_hit_the_asked_share_the_same_way_every_time() -> None:
    prompts = [[{"role": "user", "content": f"case {number}"}] for number in range(40)]
    options = ("--fault-errors", "0.5", "--fault-seed", "3", "--api-key-env", "SERVER_KEY")
    key = {"Authorization": "Bearer sk-right"}
    with nano_server(*options, environment={**os.environ, "SERVER_KEY": "sk-right"}) as server:

        def statuses(**changed: Any) -> list[int]:
            asked = [body(prompt, max_tokens=1, **changed) for prompt in prompts]
            url = f"{server.url}/chat/completions"
            return [server.http.post(url, json=one, headers=key).status_code for one in asked]

        first = statuses()
        assert first == statuses(stream=True)
        assert 10 <= first.count(500) <= 30
        assert first.count(200) == 40 - first.count(500)
        assert server.state()["faults"] == {"errors": 0.5}
        refused = [
            server.http.get(f"{server.url}/models", headers=given) for given in ({}, {"Authorization": "Bearer no"})
        ]
        assert [(one.status_code, one.json()["error"]["code"]) for one in refused] == [(401, "invalid_api_key")] * 2


def test_a_regressed_model_gives_worse_answers_of_its_own(server: NanoServer) -> None:
    with nano_server("--fault-regress", "0.5") as worse:
        assert worse.state()["faults"] == {"regress": 0.5}
        sound = [text_of(post(server, prompt=prompt)) for prompt in PROMPTS]
        first, again = ([text_of(post(worse, prompt=prompt)) for prompt in PROMPTS] for _ in range(2))
        assert first == again
        changed = [one != other for one, other in zip(first, sound, strict=True)]
        assert any(changed)
        assert not all(changed)


def test_the_delay_comes_before_the_first_token(server: NanoServer) -> None:
    with nano_server("--fault-delay-ms", "300") as slow:
        taken = [timed(one) for one in (server, slow)]
    assert 0.3 < taken[1] < taken[0] + 2


def test_faults_are_switched_on_and_off_while_it_serves() -> None:
    with nano_server() as server:
        faults = server.health.replace("/health", "/faults")

        def asked(**wanted: object) -> tuple[int, object]:
            answer = server.http.put(faults, json=wanted)
            return answer.status_code, answer.json()

        assert post(server).status_code == 200
        assert asked(errors=1, seed=3) == (200, {"faults": {"errors": 1}})
        assert post(server).status_code == 500
        assert asked() == (200, {"faults": {}})
        assert post(server).status_code == 200
        for wrong in ({"errors": 1.5}, {"errors": True}, {"delay_ms": "x"}, {"delay": 1}):
            status, told = asked(**wrong)
            assert (status, told["error"]["code"]) == (400, "invalid_faults")  # type: ignore[index]
        assert server.http.put(faults, content=b"[1").status_code == 400
        assert server.state()["faults"] == {}


def timed(server: NanoServer) -> float:
    """Return the seconds up to a stream's headers, which are sent with the first token."""
    begun = time.perf_counter()
    with server.http.stream("POST", f"{server.url}/chat/completions", json=body(stream=True)):
        return time.perf_counter() - begun


@pytest.mark.parametrize(
    ("options", "code", "said"),
    [
        (["--model", "gpt-9"], 2, "known are legacy-nano, anven-nano"),
        ([], 2, "neither --model nor --model-folder is given; one of legacy-nano, anven-nano or a folder is needed"),
        (["--model", "anven-nano", "--port", "70000"], 2, "70000 is no port between 0 and 65535"),
        (["--model", "anven-nano", "--port", "http"], 2, "http is no port between 0 and 65535"),
        (["--model", "anven-nano", "--fault-errors", "x"], 2, "x is no share between 0 and 1"),
        (["--model", "anven-nano", "--fault-delay-ms", "x"], 2, "x is no number of milliseconds"),
        (["--model", "anven-nano", "--threads", "x"], 2, "x is no whole number of at least 1"),
        (["--model", "anven-nano", "--model-folder", "/nowhere"], 2, "/nowhere is no model folder"),
        (["--model", "anven-nano", "--api-key-env", "NOT_SET"], 2, "the environment variable NOT_SET is empty"),
        (["--model", "anven-nano", "--fault-errors", "1.5"], 2, "1.5 is no share between 0 and 1"),
        (["--model", "anven-nano", "--fault-delay-ms", "nan"], 2, "nan is no number of milliseconds"),
        (["--model", "anven-nano", "--capacity", "0"], 2, "0 is no whole number of at least 1"),
    ],
)
def test_bad_options_end_with_one_clear_line(
    options: list[str], code: int, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    try:
        found: Any = main(options)
    except SystemExit as ended:  # by argparse
        found = ended.code
    shown = capsys.readouterr()
    assert found == code
    assert said in shown.err.splitlines()[-1]
    assert shown.out == ""


def test_a_port_that_is_taken_is_named() -> None:
    with closing(bind("127.0.0.1", 0)) as listener:
        listener.listen()
        port = listener.getsockname()[1]
        with pytest.raises(UnavailableService, match=f"cannot serve on port {port} of 127.0.0.1: .* --port 0 takes"):
            bind("127.0.0.1", port)


def test_connections_send_at_once() -> None:
    with closing(bind("127.0.0.1", 0)) as listener:
        listener.listen()
        with closing(socket.create_connection(listener.getsockname())), closing(listener.accept()[0]) as accepted:
            assert accepted.proto == socket.IPPROTO_TCP
            assert accepted.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
