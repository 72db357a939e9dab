"""What became of a request: an answer, or one of four ways of having none; and the errors that end a job at once.

A reply is the service's message as plain JSON. Nothing here sends anything, and nothing here knows what was asked. The
order of the checks matters: a refusal may come with empty content, and a truncated answer may look like broken JSON.
"""

from __future__ import annotations

import email.utils
import json
import time
from collections.abc import Mapping
from typing import Any

OK = "ok"
TRUNCATED = "truncated"
REFUSAL = "refusal"
SCHEMA = "schema"
TRANSPORT = "transport"

# The service's own codes for "no money left": waiting or repeating does not help, whatever the HTTP status is.
SPEND_CODES = (
    "enforced_spend_limit_reached",
    "contract_spend_limit_reached",
    "linked_organization_spend_limit_reached",
)
# A spend limit that the customer set arrives as a plain 400 without a code; the message always begins so.
SPEND_WORDS = ("you have reached your specified", "your credit balance is too low")
AGAIN = (408, 409, 429)  # and every 5xx: the same request may succeed later


class FatalApiError(Exception):
    """Nothing will succeed until a person acts; the message is one sentence for them."""


def answer(message: Mapping[str, Any]) -> tuple[str, str]:
    """(outcome, text) of a reply, as far as the reply alone tells: ok, truncated, refusal or schema (no text).

    For a refusal the text is the category that the service gives, if any.
    """
    stop = message.get("stop_reason")
    if stop == "refusal":
        return REFUSAL, str((message.get("stop_details") or {}).get("category") or "")
    # a thinking block may come first, so the text is found by type, never by position
    text = "".join(block.get("text") or "" for block in message.get("content") or [] if block.get("type") == "text")
    if stop in ("max_tokens", "model_context_window_exceeded"):
        return TRUNCATED, text
    if stop not in ("end_turn", "stop_sequence") or not text.strip():
        return SCHEMA, text
    return OK, text


def structured(message: Mapping[str, Any], schema: Mapping[str, Any]) -> tuple[str, dict | None, str]:
    """(outcome, fields, text) of a reply that was asked to follow a flat JSON schema of enums and booleans.

    Every field must be there, no other may be, and every value must be one that the schema allows.
    """
    outcome, text = answer(message)
    if outcome != OK:
        return outcome, None, text
    try:
        fields = json.loads(text)
    except ValueError:
        return SCHEMA, None, text
    properties = schema["properties"]
    if not isinstance(fields, dict) or fields.keys() != properties.keys():
        return SCHEMA, None, text
    for name, rule in properties.items():
        allowed = rule["enum"] if "enum" in rule else (True, False)
        # membership alone would let 0 and 1 pass for booleans
        if not any(fields[name] is value or (isinstance(value, str) and fields[name] == value) for value in allowed):
            return SCHEMA, None, text
    return OK, fields, text


def error_summary(error: Exception) -> str:
    """Status, type and message of an SDK error in one short line; never headers, where the key is."""
    status, kind = getattr(error, "status_code", None), getattr(error, "type", None)
    message = getattr(error, "api_message", None) or getattr(error, "message", None) or str(error)
    return " ".join(str(part) for part in (status, kind, str(message).split("\n")[0][:300]) if part)


def is_temporary(error: Exception) -> bool:
    """Whether the same request may succeed later: no connection, a limit on the rate, or a fault of the server."""
    if spend_limit(getattr(error, "error_code", None), getattr(error, "api_message", None)):
        return False
    status = getattr(error, "status_code", None)
    if status is None or status < 400:  # no connection, or a success whose body arrived broken
        return True
    said = error.response.headers.get("x-should-retry")
    return said == "true" if said in ("true", "false") else status in AGAIN or status >= 500


def was_turned_away(error: Exception) -> bool:
    """Whether the request was certainly not carried out: any 4xx, or 529, with which the service refuses work."""
    status = getattr(error, "status_code", None)
    return status is not None and (400 <= status < 500 and status not in (408, 409, 499) or status == 529)


def spend_limit(code: str | None, message: str | None) -> bool:
    return code in SPEND_CODES or (message or "").lower().startswith(SPEND_WORDS)


def fatal_sentence(error: Exception, model: str) -> str | None:
    """The sentence for an SDK error that ends the job, or None for one that does not."""
    return fatal_words(
        getattr(error, "status_code", None),
        getattr(error, "type", None),
        getattr(error, "error_code", None),
        getattr(error, "api_message", None),
        model,
    )


def fatal_words(status: int | None, kind: str | None, code: str | None, message: str | None, model: str) -> str | None:
    """The same from the parts of an error, which batches give without an HTTP status."""
    said = f" (the service says: {message})" if message else ""
    if spend_limit(code, message) or status == 402 or kind == "billing_error":
        return (
            f"The account's spend limit is reached or its credit is used up{said}. "
            "Raise it in the console and run the same command again; everything paid for is kept."
        )
    if status == 401 or kind == "authentication_error":
        return f"ANTHROPIC_API_KEY is not accepted{said}. Set a valid key in the environment and run again."
    if status == 403 or kind == "permission_error":
        return f"This key may not use the model {model!r}{said}. Use another key or change the model."
    if status == 404 or kind == "not_found_error":
        return f"The model {model!r} is unknown or retired{said}. Change the model in the configuration."
    return None


def retry_after(error: Exception, now: float | None = None) -> float | None:
    """Seconds that the service asks to wait: `retry-after-ms`, or `retry-after` as a number or a date; None if not."""
    response = getattr(error, "response", None)
    if response is None:
        return None
    milliseconds, given = response.headers.get("retry-after-ms"), response.headers.get("retry-after")
    try:
        return max(0.0, float(milliseconds) / 1000 if milliseconds else float(given))
    except (TypeError, ValueError):
        date = email.utils.parsedate_tz(given) if given else None
        return max(0.0, email.utils.mktime_tz(date) - (time.time() if now is None else now)) if date else None
