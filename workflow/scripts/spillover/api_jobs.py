"""Get every request answered, once: from the journal where it is known already, else by batches or direct calls.

This is what the judge and the translator call. A job large enough for batches stays with them to its last request,
because only a batch can be found again after a kill.
"""

from __future__ import annotations

import argparse
import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from spillover import api_costs
from spillover.api_batches import REJECTED, Batches
from spillover.api_client import ApiSettings, Calls, Request, Service
from spillover.api_costs import Prices
from spillover.api_outcomes import TRANSPORT, TRUNCATED, FatalApiError, answer
from spillover.journal import Journal, State

JOURNALS = ".journal"  # the folder beside a job's output


def add_api_flags(parser: argparse.ArgumentParser) -> None:
    """The flags of every program that may call the API: where its journal and prices are, and how requests travel."""
    given = ApiSettings()
    parser.add_argument("--journal", help="folder of the journals; without it, .journal beside the output")
    parser.add_argument("--prices", default="resources/api_prices.yaml")
    parser.add_argument("--no-calls", action="store_true", help="read the journal again and call nobody")
    parser.add_argument("--batch-from", type=int, default=given.batch_from)
    parser.add_argument("--batch-size", type=int, default=given.batch_size)
    parser.add_argument("--concurrency", type=int, default=given.concurrency)
    parser.add_argument("--poll-seconds", type=float, default=given.poll_seconds)
    parser.add_argument("--timeout-seconds", type=float, default=given.timeout_seconds)
    parser.add_argument("--attempts", type=int, default=given.attempts)


def api_settings(args: argparse.Namespace) -> ApiSettings:
    """The settings that the flags of `add_api_flags` give."""
    return ApiSettings(**{item.name: getattr(args, item.name) for item in fields(ApiSettings)})


def journal_path(args: argparse.Namespace, name: str, identity: str) -> Path:
    """The journal of all requests of one kind: what decides an answer is in `identity`, so nothing else starts anew."""
    folder = Path(args.journal) if args.journal else Path(args.out).parent / JOURNALS
    return folder / f"{name}-{hashlib.sha256(identity.encode()).hexdigest()[:16]}.jsonl"


@dataclass(frozen=True)
class Reply:
    """The message that answers a request (None if none ever came) and, without one, why."""

    message: dict[str, Any] | None
    error: str | None


@dataclass
class Answers:
    """Replies by the id of the request as first asked, and what they cost."""

    replies: dict[str, Reply]
    ledger: dict[str, Any] = field(default_factory=dict)

    def __getitem__(self, request: Request) -> Reply:
        return self.replies[request.id]


def obtain(
    requests: Sequence[Request],
    journal_path: str | Path,
    prices: Prices,
    settings: ApiSettings,
    *,
    answer_tokens: Callable[[Request], float],
    structured: bool,
    calls_allowed: bool = True,
) -> Answers:
    """Answer the requests; equal ones are asked once. `answer_tokens` guesses the length of an answer for the estimate.

    All are for one model. Raises FatalApiError for what only a person can mend, and, if calls are not allowed, for a
    request that the journal cannot answer.
    """
    distinct = {request.id: request for request in requests}
    if not distinct:
        return Answers({}, api_costs.ledger([], State(), "", prices))
    model = next(iter(distinct.values())).params["model"]
    with Journal(journal_path) as journal:
        known = set(journal.state.replies)
        waiting = _waiting(distinct, journal.state)
        print(_announce(model, distinct, waiting, journal.state, prices, settings, answer_tokens), flush=True)
        extra: dict[str, Any] = {}
        if waiting and not calls_allowed:
            raise FatalApiError(f"{journal_path}: {len(waiting)} of {len(distinct)} requests have no reply in it.")
        if waiting:
            extra = _send(distinct, journal, model, settings, structured)
        chains = {i: _chain(request, journal.state) for i, request in distinct.items()}
        paid = [r.id for chain in chains.values() for r in chain if r.id in journal.state.replies]
        ledger = api_costs.ledger(paid, journal.state, model, prices)
        ledger |= extra | {"calls_in_this_process": sum(i not in known for i in paid), "requests": len(distinct)}
        return Answers({i: _reply(chain, journal.state) for i, chain in chains.items()}, ledger)


def obtain_by_flags(
    requests: Sequence[Request],
    args: argparse.Namespace,
    name: str,
    identity: str,
    *,
    answer_tokens: Callable[[Request], float],
    structured: bool = True,
) -> Answers:
    """`obtain` as the flags of `add_api_flags` say, from the journal of this name and identity."""
    return obtain(
        requests,
        journal_path(args, name, identity),
        api_costs.load_prices(args.prices),
        api_settings(args),
        answer_tokens=answer_tokens,
        structured=structured,
        calls_allowed=not args.no_calls,
    )


def _send(
    distinct: dict[str, Request], journal: Journal, model: str, settings: ApiSettings, structured: bool
) -> dict[str, Any]:
    service = Service(model, settings)
    extra: dict[str, Any] = {"model": service.preflight(structured)}
    batches, calls = Batches(service, journal), Calls(service, journal)
    batches.settle()
    # a rejection is free, and its cause may lie in the account and be mended since: one more try a process
    for request_id in _rejected(journal.state):
        del journal.state.failures[request_id]
    by_batch = len(distinct) >= settings.batch_from
    # one round more than attempts: the second try of a truncated answer is a request of its own
    for _ in range(settings.attempts + 1):
        rejected = _rejected(journal.state)
        waiting = [request for request in _waiting(distinct, journal.state) if request.id not in rejected]
        if not waiting:
            break
        (batches if by_batch else calls).run(waiting)
    if batches.doubtful_calls:
        extra["calls_possibly_paid_twice"] = batches.doubtful_calls
    if not by_batch:
        extra["calls_in_flight"] = {"fewest_allowed": calls.limit.lowest, "most_allowed": calls.limit.highest}
    return extra


def _rejected(state: State) -> set[str]:
    return {i for i, error in state.failures.items() if error.startswith(REJECTED)}


def _chain(request: Request, state: State) -> list[Request]:
    """The request, and its second try if the first answer was cut short."""
    message = state.replies.get(request.id)
    second = request.again() if message and answer(message)[0] == TRUNCATED else None
    return [request, second] if second else [request]


def _waiting(distinct: dict[str, Request], state: State) -> list[Request]:
    """What has no reply yet; two questions cut short may share a second try."""
    last = (_chain(request, state)[-1] for request in distinct.values())
    return list({request.id: request for request in last if request.id not in state.replies}.values())


def _reply(chain: list[Request], state: State) -> Reply:
    message = state.replies.get(chain[-1].id)
    return Reply(message, None if message else state.failures.get(chain[-1].id, TRANSPORT))


def _announce(model, distinct, waiting, state: State, prices: Prices, settings: ApiSettings, answer_tokens) -> str:
    text = f"{model}: {len(distinct)} distinct requests, {len(distinct) - len(waiting)} answered in the journal"
    there = {i for sent in state.open.values() if sent.batch for i in sent.ids}
    if with_service := sum(request.id in there for request in waiting):
        text += f", {with_service} in batches of an earlier process"
    waiting = [request for request in waiting if request.id not in there]
    if not waiting:
        return text + "; nothing is to be sent"
    batch = len(distinct) >= settings.batch_from
    read, written, dollars = api_costs.estimate(waiting, map(answer_tokens, waiting), prices, batch)
    money = f"${dollars:,.2f} at the prices of {prices.date}" if dollars is not None else "an unknown price"
    way = "Message Batches" if batch else "direct calls"
    return f"{text}; {len(waiting)} to send by {way}: about {read:,.0f} input and {written:,.0f} output tokens, {money}"
