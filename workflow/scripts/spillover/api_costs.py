"""What requests to Claude will cost and did cost, in tokens and dollars, from a dated price table.

The table is resources/api_prices.yaml. A model that it does not hold costs an unknown amount, never nothing.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from spillover.api_client import Request
from spillover.journal import State

MILLION = 1_000_000
BYTES_A_TOKEN = 3.5  # of UTF-8, a cautious figure for European languages; used for estimates only


@dataclass(frozen=True)
class Prices:
    """Dollars for a million tokens by model, the share of it that a batch costs, and the day they were looked up."""

    date: str
    batch_share: float
    models: dict[str, dict[str, float]]

    def dollars(self, model: str, tokens_in: float, tokens_out: float, batch: bool) -> float | None:
        """The price, or None for a model that the table does not hold."""
        entry = self.models.get(model)
        if entry is None:
            return None
        full = (tokens_in * entry["input"] + tokens_out * entry["output"]) / MILLION
        return full * (self.batch_share if batch else 1.0)


def load_prices(path: str | Path) -> Prices:
    document = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    return Prices(str(document["date"]), document["batch_share"], document["models"])


def estimate(
    requests: Sequence[Request], answer_tokens: Iterable[float], prices: Prices, batch: bool
) -> tuple[float, float, float | None]:
    """(input tokens, output tokens, dollars) that requests will take, by the length of what they say."""
    tokens_in = sum(_bytes(request.params) for request in requests) / BYTES_A_TOKEN
    tokens_out = sum(answer_tokens)
    model = requests[0].params["model"] if requests else ""
    return tokens_in, tokens_out, prices.dollars(model, tokens_in, tokens_out, batch) if requests else 0.0


PAID = ("api_calls", "cost_dollars", "tokens")
"""What of a ledger every manifest has at its top."""


def for_manifest(ledger: dict[str, Any]) -> dict[str, Any]:
    """A ledger as a manifest's extra: what was paid at the top, the rest under `calls`."""
    paid = {key: ledger[key] for key in PAID if key in ledger}
    return paid | {"calls": {key: value for key, value in ledger.items() if key not in PAID}}


def ledger(ids: Iterable[str], state: State, model: str, prices: Prices) -> dict[str, Any]:
    """What the answers behind `ids` cost, whenever they were paid: calls, tokens, dollars and the models that answered.

    `cost_dollars` is None if the price of the model is not known.
    """
    calls = batched = tokens_in = tokens_out = 0
    dollars: float | None = 0.0
    answered: dict[str, int] = {}
    for request_id in ids:
        message = state.replies.get(request_id)
        if message is None:
            continue
        usage = message.get("usage") or {}
        cached = (usage.get("cache_creation_input_tokens") or 0) + (usage.get("cache_read_input_tokens") or 0)
        read, written = (usage.get("input_tokens") or 0) + cached, usage.get("output_tokens") or 0
        in_batch = request_id in state.batched
        price = prices.dollars(model, read, written, in_batch)
        dollars = None if price is None or dollars is None else dollars + price
        calls, batched = calls + 1, batched + in_batch
        tokens_in, tokens_out = tokens_in + read, tokens_out + written
        answered[message.get("model", "")] = answered.get(message.get("model", ""), 0) + 1
    return {
        "api_calls": calls,
        "cost_dollars": None if dollars is None else round(dollars, 6),
        "tokens": tokens_in + tokens_out,
        "input_tokens": tokens_in,
        "output_tokens": tokens_out,
        "calls_in_batches": batched,
        "answered_by": answered,
        "prices_of": prices.date,
    }


def _bytes(value: Any) -> int:
    if isinstance(value, dict):
        return sum(_bytes(item) for item in value.values())
    if isinstance(value, list | tuple):
        return sum(_bytes(item) for item in value)
    return len(str(value).encode())
