"""What is taken out of a text, and what is kept of one that cannot be looked through: nothing."""

from __future__ import annotations

import json
import sys
import time
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from anven_pipelines.domain.errors import RedactionFailed
from anven_pipelines.resources import redactor as module
from anven_pipelines.resources.redactor import CUT, MARGIN, Redactor, is_installed

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = pytest.mark.skipif(not is_installed(), reason="needs the extra `pii` (presidio-analyzer)")

# Published examples: of card schemes, the IBAN registry, RFC 5737 and 3849, and the documentation of the key's issuer.
CARD = "4111 1111 1111 1111"
IBAN = "DE89 3704 0044 0532 0130 00"
KEY = "sk-proj-abcdefghijklmnop1234"


@pytest.fixture(scope="module")
def redactor() -> Redactor:
    return Redactor()


@pytest.mark.parametrize(
    ("text", "redacted"),
    [
        ("write to ada.lovelace+x@example.co.uk now", "write to <EMAIL_ADDRESS> now"),
        ("ada@example.com,bob@example.org", "<EMAIL_ADDRESS>,<EMAIL_ADDRESS>"),
        ("ada@intranet.corp", "<EMAIL_ADDRESS>"),
        ("/a b?to ada%40example.com", "/a b?to <EMAIL_ADDRESS>"),
        ("call (415) 555-2671.", "call <PHONE_NUMBER>."),
        ("call +49 30 901820 or 0171 2345678", "call <PHONE_NUMBER> or <PHONE_NUMBER>"),
        ("tel:+34612345678", "tel:<PHONE_NUMBER>"),
        (f"paid with {CARD} 12/27", "paid with <CREDIT_CARD> 12/27"),
        ("card4111-1111-1111-1111x", "card<CREDIT_CARD>x"),
        ("2223003122003222, 3782 822463 10005", "<CREDIT_CARD>, <CREDIT_CARD>"),
        ("3400 4111 1111 1111 1111", "3400 <CREDIT_CARD>"),
        (f"to {IBAN} dann", "to <IBAN_CODE> dann"),
        ("ES9121000418450200051332 mehr", "<IBAN_CODE> mehr"),
        ("de89370400440532013000", "<IBAN_CODE>"),
        ("from 192.0.2.7 and 2001:db8::1", "from <IP_ADDRESS> and <IP_ADDRESS>"),
        ("my number is 123-45-6789", "my number is <US_SSN>"),
        ("SSN: 123456789", "SSN: <US_SSN>"),
        ("born on 12.03.1984, due 12.03.2024", "born on <DATE_OF_BIRTH>, due 12.03.2024"),
        ("DOB: March 3rd, 1984", "DOB: <DATE_OF_BIRTH>"),
        ("geboren am 3. März 1984", "geboren am <DATE_OF_BIRTH>"),
        (f"use {KEY}", "use <SECRET>"),
        ("AKIAIOSFODNN7EXAMPLE and ghp_0123456789abcdefghij", "<SECRET> and <SECRET>"),
        ("eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxIn0.c2lnbmF0dXJl", "<SECRET>"),
        ("Authorization: Bearer abcdef0123456789", "Authorization: Bearer <SECRET>"),
        ("postgres://app:pa55@db/x", "postgres://app:<SECRET>@db/x"),
        ("password: hunter2", "password: <SECRET>"),
        ('{\\"api_key\\": \\"zz\\"}', '{\\"api_key\\": \\"<SECRET>\\"}'),
        ("https://x.io/a?token=abcd1234&y=2", "https://x.io/a?token=<SECRET>&y=2"),
        ("-----BEGIN RSA PRIVATE KEY-----\nMIIE\n-----END RSA PRIVATE KEY-----.", "<SECRET>."),
    ],
)
def test_each_kind_becomes_its_name(text: str, redacted: str, redactor: Redactor) -> None:
    assert redactor.redact(text).text == redacted


@pytest.mark.parametrize(
    "text",
    [
        "",
        "order 99881 of 2024-01-02 10:20, total 1,234,567.89 EUR",
        "react@18.2.0 and std::vector at 12:30:15",
        "a number without its checksum: 4111 1111 1111 1112",
        "DE89 3704 0044 0532 0130 01",
        "the secret of a good password",
        "version 3.11.7",
        '{"answer": "Paris",   "score": 0.25}',
    ],
)
def test_what_is_none_of_them_stays_to_the_letter(text: str, redactor: Redactor) -> None:
    assert redactor.redact(text) == (text, {}, False)


@pytest.mark.parametrize("name", ["Ada Lovelace", "12 Example Street, London", "ada (at) example (dot) com"])
def test_what_has_no_form_is_not_found_as_the_docs_say(name: str, redactor: Redactor) -> None:
    assert redactor.redact(name).text == name


@pytest.mark.parametrize(
    ("text", "redacted"),
    [
        ("卡号4111111111111111吗", "卡号<CREDIT_CARD>吗"),
        ("\uff14\uff11\uff11\uff11\u3000" + "\uff11\uff11\uff11\uff11" * 3, "<CREDIT_CARD>"),
        ("٤١١١١١١١١١١١١١١١", "<CREDIT_CARD>"),
        ("4111\u200b1111\u00ad11111111", "<CREDIT_CARD>"),
        ("4111\u20111111\u20111111\u20111111", "<CREDIT_CARD>"),
        ("4111\u00a01111\u202f1111\u20091111", "<CREDIT_CARD>"),
        ("用户@例子.公司 及", "<EMAIL_ADDRESS> 及"),
        ("ada\uff20example.com", "<EMAIL_ADDRESS>"),
        ("😀 ada@example.com 😀", "😀 <EMAIL_ADDRESS> 😀"),
        ('so: {"a": "\\n4111111111111111"}', 'so: {"a": "\\n<CREDIT_CARD>"}'),
        ('so: {"a": "ada\\u0040example.com"}', 'so: {"a": "<EMAIL_ADDRESS>"}'),
    ],
)
def test_no_script_and_no_escape_hides_a_number(text: str, redacted: str, redactor: Redactor) -> None:
    assert redactor.redact(text).text == redacted


def test_json_is_walked_and_stays_json(redactor: Redactor) -> None:
    inner = json.dumps({"to": "ada@example.com"})
    value = {
        "a": [4111111111111111, 7, None, True, 0.5],
        "ada@example.com": "x",
        "Password": "x",
        "token": "",
        "inner": inner,
    }
    found = redactor.redact(json.dumps(value))
    assert json.loads(found.text) == {
        "a": ["<CREDIT_CARD>", 7, None, True, 0.5],
        "<EMAIL_ADDRESS>": "x",
        "Password": "<SECRET>",
        "token": "",
        "inner": json.dumps({"to": "<EMAIL_ADDRESS>"}),
    }
    assert found.found == {"CREDIT_CARD": 1, "EMAIL_ADDRESS": 2, "SECRET": 1}


SECRETS = [
    '{"password": 482913}',
    '{"secret": ["x1", {"y": "x2"}, "x3"]}',
    '{"api_key": {"value": "x1", "a]": ["x2"]}}',
    '{"session_token": "x1 x2"}',
    '{"Authorization": "x1"}',
    '{"cookie": "x1\\nx2"}',
    '{"pwd": -4.82913e+5}',
]


@pytest.mark.parametrize("pad", ["", "y" * 2_000], ids=["walked", "too long to be walked"])
@pytest.mark.parametrize("text", SECRETS)
def test_whatever_stands_under_a_secrets_name_is_gone(text: str, pad: str, redactor: Redactor) -> None:
    found = redactor.redact(json.dumps(json.loads(text) | {"said": f"good {pad}"}), limit=1_000)
    (name,) = json.loads(text)
    assert found.text.replace('"<SECRET>"', "<SECRET>").startswith(f'{{"{name}": <SECRET>, "said": "good ')
    assert found.found == {"SECRET": 1}
    assert found.is_cut == bool(pad)


def test_true_false_null_and_nothing_are_no_secrets(redactor: Redactor) -> None:
    text = '{"password": true, "secret": null, "token": "", "api_key": [], "cookie": {}}'
    assert redactor.redact(text).text == text


@pytest.mark.parametrize("text", ['{"token": "x1', '{"password": {"a": ["x1", "x2', '{\\"cookie\\": [\\"x1'])
def test_of_a_secret_that_was_cut_nothing_is_left(text: str, redactor: Redactor) -> None:
    found = redactor.redact(text).text
    assert "x1" not in found
    assert found.endswith("<SECRET>")


@pytest.mark.parametrize(
    "text", ["[" * 5_000 + '"ada@example.com"' + "]" * 5_000, "{ ada@example.com }", "[ada@example.com"]
)
def test_json_that_cannot_be_walked_is_a_text(text: str, redactor: Redactor) -> None:
    assert redactor.redact(text).text == text.replace("ada@example.com", "<EMAIL_ADDRESS>")


def test_of_what_overlaps_all_goes_under_the_longest_ones_name(redactor: Redactor) -> None:
    text = "password: 'ada@example.com 4111111111111111', end"
    assert redactor.redact(text).text == "password: '<SECRET>', end"
    assert Redactor(["K-1 ada"]).redact("K-1 ada@example.com").text == "<EMAIL_ADDRESS>"
    assert Redactor(["see ada@example.com or"]).redact("see ada@example.com or").text == "<REDACTED>"


def test_a_workloads_own_patterns_come_beside(redactor: Redactor) -> None:
    own = Redactor([r"\bK-\d{6}\b", "(?i)project (?P<it>[a-z]+)"])
    assert own.redact("K-123456 of Project Apollo, ada@example.com").text == (
        "<REDACTED> of Project <REDACTED>, <EMAIL_ADDRESS>"
    )
    assert redactor.redact("K-123456").text == "K-123456"


@pytest.mark.parametrize("at", range(-30, 5))
def test_nothing_survives_half_at_the_cut(at: int, redactor: Redactor) -> None:
    text = "x" * (1_000 + at) + f" {CARD} " + "y" * 50_000
    found = redactor.redact(text[: 1_000 + MARGIN], limit=1_000)
    assert found.text.endswith(CUT)
    assert "11" not in found.text
    assert found.is_cut
    assert len(found.text) < 1_100


def test_a_huge_text_is_bounded_and_what_is_kept_is_redacted(redactor: Redactor) -> None:
    found = redactor.redact("mail ada@example.com. " * 700, limit=10_000)
    assert "@" not in found.text
    assert found.text.count("<EMAIL_ADDRESS>") == found.found["EMAIL_ADDRESS"] > 400


@pytest.mark.parametrize(
    "text",
    [
        *("a." * 8_000 + "@", "@a.b-" * 3_000, "://" * 5_000, "[{" * 8_000, "born " * 3_000, "4" * 16_000),
        *(
            '"token":' + "[{" * 8_000,
            '"token' * 2_700,
            '"token":[' * 1_800,
            '"' + "secret" * 2_700,
            "'token':'" * 1_800,
        ),
    ],
)
def test_a_text_made_to_take_long_does_not(text: str, redactor: Redactor) -> None:
    redactor.redact(text)  # raises where it takes longer than a text may


def test_a_text_that_takes_too_long_is_not_kept(redactor: Redactor, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "TEXT_SECONDS", 0.0)
    with pytest.raises(RedactionFailed, match=r"a text of 15 characters could not be redacted \(TimeoutError\)"):
        redactor.redact("ada@example.com")


def test_a_pattern_that_takes_too_long_does_not_count_as_nothing_found() -> None:
    slow = Redactor([r"(?:[ab]|[ab][ab])+$"])
    start = time.monotonic()
    with pytest.raises(RedactionFailed, match="TimeoutError"):
        slow.redact("ab" * 200 + "!")
    assert time.monotonic() - start >= module.TEXT_SECONDS


def test_an_error_says_nothing_of_the_text(redactor: Redactor, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(text: str, *_: Any) -> Iterator[tuple[int, int]]:
        raise ValueError(text)

    monkeypatch.setattr(redactor, "_kinds", (redactor._kinds[0]._replace(find=fail),))
    with pytest.raises(RedactionFailed) as caught:
        redactor.redact("ada@example.com")
    assert "ada" not in repr(caught.value)
    assert caught.value.__suppress_context__


def test_without_presidio_there_is_no_redactor(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "presidio_analyzer", None)
    with pytest.raises(RedactionFailed, match=r"is missing\); install the extra `pii`"):
        Redactor()


TEXTS = st.text(alphabet=st.sampled_from('ab1 4.@-+():/%\\"{}[],:n\n\u200b\uff14é吗'), max_size=200)


@settings(max_examples=150, deadline=None)
@given(before=TEXTS, after=TEXTS)
def test_an_address_between_any_two_texts_is_gone_and_twice_is_the_same(
    redactor: Redactor, before: str, after: str
) -> None:
    text = f"{before} ada.lovelace@example.com {after}"
    found = redactor.redact(text)
    assert "lovelace@example" not in found.text
    assert found == redactor.redact(text)
