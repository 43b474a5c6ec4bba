"""Sends one notice to one receiver, in bounded time: a webhook, Slack or what takes its messages, or a mail server."""

from __future__ import annotations

import logging
import smtplib
import ssl
import threading
from email.message import EmailMessage
from email.utils import format_datetime
from typing import TYPE_CHECKING, Final

import httpx

from anven_pipelines.domain.errors import InvalidInput, UnavailableService
from anven_pipelines.resources.environment import api_key
from anven_pipelines.spec_notify import Slack, Webhook

if TYPE_CHECKING:
    from anven_pipelines.domain.notice import Notice
    from anven_pipelines.spec_notify import Email, Receiver

TIMEOUT_S: Final = 5.0
"""Longest wait for one answer of a receiver ..."""
LONGEST_S: Final = 10.0
"""... and for all of them; what drips a byte at a time never runs into the first."""

_CONTENT: Final = (400, 413, 422)
_PERMANENT: Final = 500  # of SMTP


class Unwanted(UnavailableService):
    """The receiver works, and takes everything but this notice."""


def name_of(receiver: Receiver) -> str:
    """Return what a receiver is called; no secret."""
    if isinstance(receiver, Webhook | Slack):
        return f"{receiver.kind} {receiver.url_env}"
    return f"email {', '.join(receiver.to)}"


def send(receiver: Receiver, notice: Notice) -> None:
    """Send a notice; it may arrive although this fails.

    Raises:
        InvalidInput: a variable that it needs is not set.
        Unwanted: the receiver refuses the notice itself.
        UnavailableService: it does not answer in time, or not well. No message holds a secret.
    """
    failure: list[Exception] = []

    def attempt() -> None:
        try:
            if isinstance(receiver, Webhook | Slack):
                _post(receiver, notice)
            else:
                _mail(receiver, notice)
        except Exception as error:  # noqa: BLE001 - whatever it is belongs to the caller's thread
            failure.append(error)

    thread = threading.Thread(target=attempt, name="anven-notice", daemon=True)
    thread.start()
    thread.join(LONGEST_S)
    if thread.is_alive():
        message = f"{name_of(receiver)} took longer than {LONGEST_S:g} s"
        raise UnavailableService(message)
    if failure:
        error = failure[0]
        if isinstance(error, InvalidInput | UnavailableService):
            raise error
        # The text of an error may hold the URL, which is a secret.
        message = f"{name_of(receiver)} cannot be reached: {type(error).__name__}"
        raise UnavailableService(message) from None


def _post(receiver: Webhook | Slack, notice: Notice) -> None:
    for name in ("httpx", "httpcore"):
        logging.getLogger(name).setLevel(logging.CRITICAL)  # they log the URL, which is a secret
    url = _variable(receiver.url_env, receiver)
    headers = {"Idempotency-Key": notice.id}
    if isinstance(receiver, Webhook) and receiver.token_env:
        headers["Authorization"] = f"Bearer {_variable(receiver.token_env, receiver)}"
    body = {"text": _for_slack(notice.text)} if isinstance(receiver, Slack) else notice.to_json()
    with httpx.Client(timeout=TIMEOUT_S) as client, client.stream("POST", url, json=body, headers=headers) as answer:
        status = answer.status_code  # what it says besides is not read
    if not answer.is_success:
        message = f"{name_of(receiver)} answered with {status}"
        raise Unwanted(message) if status in _CONTENT else UnavailableService(message)


def _mail(receiver: Email, notice: Notice) -> None:
    letter = EmailMessage()
    letter["Subject"] = " ".join(notice.title.split())
    letter["From"] = receiver.sender
    letter["To"] = ", ".join(receiver.to)
    letter["Date"] = format_datetime(notice.at)
    letter["Message-ID"] = f"<{notice.id}@anven.invalid>"  # the same for the same notice: mail programs show it once
    letter["X-Anven-Notice"] = notice.id
    letter.set_content(notice.text)
    secure = ssl.create_default_context()
    try:
        with (
            smtplib.SMTP_SSL(receiver.server, receiver.port, timeout=TIMEOUT_S, context=secure)
            if receiver.security == "tls"
            else smtplib.SMTP(receiver.server, receiver.port, timeout=TIMEOUT_S)
        ) as server:
            if receiver.security == "starttls":
                server.starttls(context=secure)
            if receiver.user_env and receiver.password_env:
                user = _variable(receiver.user_env, receiver)
                server.login(user, _variable(receiver.password_env, receiver))
            server.send_message(letter)
    except smtplib.SMTPAuthenticationError:
        message = f"{name_of(receiver)}: {receiver.server} refuses the user or the password"
        raise UnavailableService(message) from None
    except smtplib.SMTPDataError as error:
        message = f"{name_of(receiver)}: {receiver.server} refuses the letter with {error.smtp_code}"
        raise Unwanted(message) if error.smtp_code >= _PERMANENT else UnavailableService(message) from None
    except smtplib.SMTPRecipientsRefused as error:
        codes = ", ".join(f"{address} {code}" for address, (code, _) in error.recipients.items())
        message = f"{name_of(receiver)}: {receiver.server} refuses every address ({codes})"
        raise UnavailableService(message) from None


def _for_slack(text: str) -> str:
    """Write the three characters that Slack's messages give a meaning to."""
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")


def _variable(name: str, receiver: Receiver) -> str:
    try:
        return str(api_key(name, of=name_of(receiver)))
    except InvalidInput as error:
        message = f"{name_of(receiver)}: the environment variable {name} is not set or empty where notices are sent"
        raise InvalidInput(message) from error
