"""Requests to Claude against a local server: what is repeated, what ends the job, what is remembered."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from datetime import UTC, datetime
from types import SimpleNamespace

import pytest

from conftest import ROOT
from fake_anthropic import KEY, FakeAnthropic, Faults, text_of
from spillover import api_costs, api_jobs, api_outcomes
from spillover.api_client import AdaptiveLimit, ApiSettings, Request
from spillover.api_outcomes import FatalApiError
from spillover.journal import Journal

PRICES = api_costs.load_prices(ROOT / "resources/api_prices.yaml")
MODEL = "claude-haiku-4-5-20251001"
# A patience that ends only where a test wants it to: an answer given up on a busy machine would be paid for twice.
DIRECT = ApiSettings(batch_from=10**6, poll_seconds=0.05, timeout_seconds=60)
BATCHES = replace(DIRECT, batch_from=1)
IMPATIENT_SECONDS = 1.5


def request(text: str, model: str = MODEL, **more) -> Request:
    params = {"model": model, "max_tokens": 100, "messages": [{"role": "user", "content": text}]} | more
    return Request(params, longer=400)


@pytest.fixture
def served(tmp_path, monkeypatch):
    """A function that runs a server with given faults and asks it; it returns the answers and the server."""

    def ask(texts, settings=DIRECT, journal="journal.jsonl", prepare=lambda fake: None, structured=False, **server):
        with FakeAnthropic(**server) as fake:
            prepare(fake)
            for name, value in fake.environment().items():
                monkeypatch.setenv(name, value)
            requests = [request(t) if isinstance(t, str) else t for t in texts]
            path = tmp_path / journal
            answers = api_jobs.obtain(
                requests, path, PRICES, settings, answer_tokens=lambda r: 10, structured=structured
            )
            return answers, fake

    return ask


def words(answers, text):
    """(outcome, text) of the answer to a question."""
    reply = answers[request(text)]
    return api_outcomes.answer(reply.message) if reply.message else ("transport", reply.error)


def fates(**by_text):
    """Faults by what a text says, for the first try only if the fate ends in `once`."""

    def fate(params, tries):
        wanted = by_text.get(text_of(params), "ok")
        return wanted.removesuffix("_once") if not wanted.endswith("_once") or tries == 1 else "ok"

    return Faults(item=fate)


# What is repeated


def patience(settings: ApiSettings, fault: str) -> ApiSettings:
    return replace(settings, timeout_seconds=IMPATIENT_SECONDS) if fault == "slow" else settings


@pytest.mark.parametrize("fault", ["429", "500", "503", "504", "529", "reset", "slow", "cut_body", "reset_after"])
def test_a_direct_call_gets_over_a_fault(served, fault):
    faults = Faults(script=["none", fault])  # the model is looked up first
    answers, fake = served(["hello"], patience(DIRECT, fault), faults=faults)
    assert words(answers, "hello") == ("ok", "HELLO")


@pytest.mark.parametrize("fault", ["429", "500", "503", "504", "529", "reset", "slow", "cut_body", "reset_after"])
@pytest.mark.parametrize("step", ["create", "poll", "results"])
def test_a_batch_gets_over_a_fault_at_any_step_and_is_paid_for_once(served, fault, step):
    # requests: the model, create, poll, poll, poll (ended), before the results: poll, poll, the results
    before = {"create": 1, "poll": 2, "results": 7}[step]
    faults = Faults(script=["none"] * before + [fault])
    answers, fake = served(["hello", "there"], patience(BATCHES, fault), faults=faults)
    assert words(answers, "there") == ("ok", "THERE")
    assert not fake.faults.script and set(fake.billed.values()) == {1}


def test_the_time_that_the_service_asks_for_is_waited(served):
    started = time.monotonic()
    answers, fake = served(["a", "b", "c", "d"], bucket=(2, 4))
    assert time.monotonic() - started >= 0.4  # two places at once, the third and fourth after a quarter second each
    assert all(words(answers, t)[0] == "ok" for t in "abcd") and sum(fake.billed.values()) == 4


def test_calls_in_flight_are_halved_by_429_and_grow_again(served):
    # the first call meets the 429, since a rate that this machine can exceed is not known
    answers, fake = served([f"text {i}" for i in range(60)], faults=Faults(script=["none", "429"]))
    assert all(reply.message for reply in answers.replies.values())
    spread = answers.ledger["calls_in_flight"]
    assert spread["fewest_allowed"] < 4 < spread["most_allowed"] <= DIRECT.concurrency


def test_a_burst_of_429_cuts_once_and_a_server_fault_stops_growth():
    limit = AdaptiveLimit(most=16, start=8)
    started = [limit.enter() for _ in range(4)]
    for moment in started:
        limit.cut(0.0, moment)
        limit.leave()
    assert limit.allowed == 4
    limit.hold(60)
    limit.grow()
    assert limit.allowed == 4


def test_a_truncated_answer_is_asked_again_once_with_more_room(served):
    answers, fake = served(["long"], faults=fates(long="truncated_once"))
    assert words(answers, "long") == ("ok", "LONG")
    assert [body["max_tokens"] for body in fake.bodies()] == [100, 400]


def test_an_answer_truncated_twice_is_an_outcome(served):
    answers, fake = served(["long"], faults=fates(long="truncated"))
    assert words(answers, "long")[0] == "truncated"
    assert len(fake.bodies()) == 2


@pytest.mark.parametrize("settings", [DIRECT, BATCHES], ids=["direct", "batches"])
def test_a_refusal_with_empty_content_is_an_outcome_and_not_repeated(served, settings):
    answers, fake = served(["no", "yes"], settings, faults=fates(no="refusal"))
    assert words(answers, "no") == ("refusal", "general_harms")
    assert words(answers, "yes") == ("ok", "YES")
    assert len(fake.bodies()) == 2


@pytest.mark.parametrize("fault", ["expired", "canceled", "overloaded"])
def test_an_item_that_a_batch_did_not_do_is_sent_again(served, fault):
    answers, fake = served(["a", "b"], BATCHES, faults=fates(a=f"{fault}_once"))
    assert words(answers, "a") == ("ok", "A")
    assert len(fake.batches) == 2 and set(fake.billed.values()) == {1}


@pytest.mark.parametrize("kind", ["canceled", "expired"])
def test_a_batch_that_ended_before_its_time_is_sent_again(served, kind):
    def prepare(fake):
        fake.on_event = lambda name: name == "poll" and fake.end_early("msgbatch_000000", kind)

    answers, fake = served(["a", "b"], BATCHES, prepare=prepare)
    assert words(answers, "b") == ("ok", "B")
    assert len(fake.batches) == 2 and set(fake.billed.values()) == {1}


def test_an_item_that_never_gets_done_is_given_up_and_said_why(served):
    answers, fake = served(["a", "b"], BATCHES, faults=fates(a="expired"))
    assert words(answers, "a") == ("transport", "expired")
    assert len(fake.batches) == BATCHES.attempts + 1


def test_a_text_that_the_service_rejects_costs_no_other_its_answer(served):
    answers, fake = served(["bad", "good"], BATCHES, faults=fates(bad="invalid"))
    assert words(answers, "bad")[1].startswith("rejected") and words(answers, "good") == ("ok", "GOOD")
    assert len(fake.batches) == 1


def test_results_in_any_order_find_their_requests(served):
    texts = [f"text {i}" for i in range(50)]
    answers, fake = served(texts, BATCHES, seed=4)
    order = [line["custom_id"] for line in fake.batches["msgbatch_000000"]["results"]]
    assert order != [request(t).id for t in texts]
    assert all(words(answers, t) == ("ok", t.upper()) for t in texts)


def test_equal_texts_are_asked_once(served):
    answers, fake = served(["a", "a", "b", "a"], BATCHES)
    assert len(fake.bodies()) == 2 and answers.ledger["requests"] == 2


def test_a_thinking_block_before_the_answer_is_passed_over(served):
    answers, fake = served([request("hi", model="claude-haiku-5-5")])
    reply = answers[request("hi", model="claude-haiku-5-5")]
    assert reply.message["content"][0]["type"] == "thinking"
    assert api_outcomes.answer(reply.message) == ("ok", "HI")


def test_names_of_requests_are_hashes_that_a_batch_takes():
    name = request("a").id
    assert len(name) <= 64 and name.isalnum()
    assert name == request("a").id != request("b").id != request("b", model="claude-haiku-5-5").id


def error(status, code=None, message=None, **headers):
    """An error of the SDK, as far as this project looks at one."""
    names = {name.replace("_", "-"): value for name, value in headers.items()}
    return SimpleNamespace(
        status_code=status, type=None, error_code=code, api_message=message, response=SimpleNamespace(headers=names)
    )


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [({"retry_after_ms": "1500", "retry_after": "9"}, 1.5), ({"retry_after": "2.5"}, 2.5),
     ({"retry_after": "soon"}, None),
     ({"retry_after": "Fri, 20 Nov 2026 12:00:30 GMT"}, 30.0), ({"retry_after": "Fri, 20 Nov 2026 11:00:00 GMT"}, 0.0),
     ({}, None)],
)  # fmt: skip
def test_the_wait_is_read_in_every_form_it_is_given(headers, seconds):
    noon = datetime(2026, 11, 20, 12, tzinfo=UTC).timestamp()
    assert api_outcomes.retry_after(error(429, **headers), now=noon) == seconds


@pytest.mark.parametrize(
    ("fault", "temporary"),
    [(error(429), True), (error(429, "ramp_limit_exceeded", retry_after="1"), True), (error(529), True),
     (error(500), True), (error(500, x_should_retry="false"), False), (error(400), False),
     (error(400, x_should_retry="true"), True), (error(429, "enforced_spend_limit_reached"), False),
     (error(404), False)],
)  # fmt: skip
def test_what_is_worth_another_try(fault, temporary):
    assert api_outcomes.is_temporary(fault) == temporary


@pytest.mark.parametrize(
    ("status", "away"), [(400, True), (429, True), (529, True), (500, False), (504, False), (408, False)]
)
def test_only_a_request_that_was_certainly_turned_away_counts_as_unpaid(status, away):
    assert api_outcomes.was_turned_away(error(status)) == away


# What ends the job, in one sentence


def fatal(served, *arguments, **options) -> str:
    with pytest.raises(FatalApiError) as caught:
        served(*arguments, **options)
    assert KEY not in str(caught.value)
    return str(caught.value)


def test_without_a_key_nothing_is_sent(monkeypatch, tmp_path):
    for name in ("ANTHROPIC_API_KEY", "ANTHROPIC_AUTH_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(FatalApiError, match="ANTHROPIC_API_KEY is not set"):
        api_jobs.obtain([request("a")], tmp_path / "j", PRICES, DIRECT, answer_tokens=lambda r: 1, structured=False)


@pytest.mark.parametrize("settings", [DIRECT, BATCHES], ids=["direct", "batches"])
def test_a_wrong_key_is_one_sentence_and_nothing_is_sent(served, settings, monkeypatch):
    monkeypatch.setattr("fake_anthropic.FakeAnthropic.environment", lambda self: {
        "ANTHROPIC_BASE_URL": self.url, "ANTHROPIC_API_KEY": "wrong"
    })  # fmt: skip
    assert "ANTHROPIC_API_KEY is not accepted" in fatal(served, ["a"], settings)


@pytest.mark.parametrize(
    ("model", "said"), [("claude-2.0", "unknown or retired"), ("claude-3-opus-20240229", "retired")]
)
def test_a_model_that_is_gone_is_named(served, model, said):
    sentence = fatal(served, [request("a", model=model)], BATCHES)
    assert model in sentence and said in sentence


def spent(status, error):
    def prepare(fake):
        fake.spent = (1, status, error)

    return prepare


LIMITS = {
    "tier": (
        429,
        {"type": "rate_limit_error", "message": "x", "details": {"error_code": "enforced_spend_limit_reached"}},
    ),
    "own": (400, {"type": "invalid_request_error", "message": "You have reached your specified API usage limits. ..."}),
    "credit": (402, {"type": "billing_error", "message": "no credit"}),
}


@pytest.mark.parametrize("limit", LIMITS)
@pytest.mark.parametrize("settings", [DIRECT, BATCHES], ids=["direct", "batches"])
def test_a_spend_limit_ends_the_job_keeps_what_is_paid_and_is_not_hammered(served, tmp_path, limit, settings):
    assert "spend limit" in fatal(served, [f"text {i}" for i in range(20)], settings, prepare=spent(*LIMITS[limit]))
    with Journal(tmp_path / "journal.jsonl") as journal:
        paid = len(journal.state.replies)
    assert paid >= 1
    answers, fake = served([f"text {i}" for i in range(20)], settings)  # the limit was raised
    assert all(reply.message for reply in answers.replies.values())
    assert sum(fake.billed.values()) == 20 - paid


def test_settings_that_the_service_rejects_are_one_sentence(served):
    wrong = [request(f"text {i}", temperature=0) for i in range(3)]
    assert "temperature" in fatal(served, wrong, BATCHES)


@pytest.mark.parametrize("batch_size", [2, 1], ids=["one batch", "two batches"])
def test_requests_that_were_all_rejected_are_sent_again_once_the_cause_is_mended(monkeypatch, tmp_path, batch_size):
    settings = replace(BATCHES, batch_size=batch_size)
    with FakeAnthropic(faults=fates(a="invalid", b="invalid")) as fake:
        for name, value in fake.environment().items():
            monkeypatch.setenv(name, value)

        def ask():
            return api_jobs.obtain(
                [request("a"), request("b")],
                tmp_path / "j",
                PRICES,
                settings,
                answer_tokens=lambda r: 1,
                structured=False,
            )

        for _ in range(2):  # again before it is mended: the same sentence
            with pytest.raises(FatalApiError, match="rejects every request"):
                ask()
        fake.faults = Faults()
        answers = ask()
    assert words(answers, "a") == ("ok", "A") and words(answers, "b") == ("ok", "B")
    assert sorted(fake.billed.values()) == [1, 1]


@pytest.mark.parametrize("settings", [DIRECT, BATCHES], ids=["direct", "batches"])
def test_a_rejected_text_gets_one_try_a_process_and_never_ends_a_job_that_had_answers(served, settings):
    served(["good"], settings)
    for _ in range(2):
        answers, fake = served(["bad", "good"], settings, faults=fates(bad="invalid"))
        assert words(answers, "bad")[1].startswith("rejected") and words(answers, "good") == ("ok", "GOOD")
        assert [text_of(body) for body in fake.bodies()] == ["bad"] and not fake.billed


def test_a_service_that_stays_away_is_one_sentence(served):
    assert "Nothing is lost" in fatal(served, ["a"], BATCHES, faults=Faults(http_share=1.0, http_kinds=("503",)))


# What is remembered


def test_the_same_requests_again_are_answered_without_a_key(served, monkeypatch, tmp_path):
    first, _ = served(["a", "b"])
    for name in ("ANTHROPIC_API_KEY", "ANTHROPIC_BASE_URL"):
        monkeypatch.delenv(name)
    again = api_jobs.obtain(
        [request("b"), request("a")], tmp_path / "journal.jsonl", PRICES, DIRECT, answer_tokens=len, structured=False
    )
    assert words(again, "a") == words(first, "a")
    assert again.ledger["cost_dollars"] == first.ledger["cost_dollars"] > 0
    assert (first.ledger["calls_in_this_process"], again.ledger["calls_in_this_process"]) == (2, 0)


def test_replies_can_be_read_again_but_not_asked_for_without_calls(served, tmp_path):
    served(["a"])
    options = {"answer_tokens": lambda r: 1, "structured": False, "calls_allowed": False}
    path = tmp_path / "journal.jsonl"
    assert api_jobs.obtain([request("a")], path, PRICES, DIRECT, **options).replies
    with pytest.raises(FatalApiError, match="1 of 2 requests have no reply"):
        api_jobs.obtain([request("a"), request("b")], path, PRICES, DIRECT, **options)


def test_more_requests_pay_only_for_the_new_ones(served):
    served(["a", "b"], BATCHES)
    answers, fake = served(["a", "b", "c"], BATCHES)
    assert [text_of(body) for body in fake.bodies()] == ["c"]
    assert answers.ledger["api_calls"] == 3


def test_a_line_cut_by_a_kill_is_dropped_and_a_damaged_one_is_named(tmp_path):
    path = tmp_path / "j.jsonl"
    with Journal(path) as journal:
        journal.reply("r1", {"stop_reason": "end_turn"})
        journal.reply("r2", {"stop_reason": "end_turn"})
    path.write_bytes(path.read_bytes()[:-10])
    with Journal(path) as journal:
        assert set(journal.state.replies) == {"r1"}
        journal.reply("r3", {})
    with Journal(path) as journal:
        assert set(journal.state.replies) == {"r1", "r3"}
    path.write_text("nonsense\n" + path.read_text())
    with pytest.raises(FatalApiError, match="line 1 is damaged"):
        Journal(path)


def test_two_processes_never_share_a_journal(tmp_path):
    with Journal(tmp_path / "j"), pytest.raises(FatalApiError, match="another process"):
        Journal(tmp_path / "j")


def test_a_full_disk_is_one_sentence(tmp_path, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    with Journal(tmp_path / "j") as journal, monkeypatch.context() as during:
        during.setattr(os, "write", full)
        with pytest.raises(FatalApiError, match="No space left on device"):
            journal.sending("m", ["r"])


KILLED = """
import sys; sys.path[:0] = ["workflow/scripts", "tests"]
from test_api import BATCHES, DIRECT, PRICES, request
from spillover import api_jobs
settings = {"batches": BATCHES, "direct": DIRECT}[sys.argv[2]]
requests = [request(f"text {i}") for i in range(20)]
api_jobs.obtain(requests, sys.argv[1], PRICES, settings, answer_tokens=lambda r: 1, structured=False)
"""


def killed_at(moment: str, way: str, path, count: int = 1) -> FakeAnthropic:
    """Run twenty requests in a process that dies at an event of the server, then again to the end."""
    with FakeAnthropic() as fake:
        command = [sys.executable, "-c", KILLED, str(path), way]
        left = [count]

        def event(name):
            left[0] -= name == moment
            if left[0] == 0:
                process.send_signal(signal.SIGKILL)
                left[0] = -1

        fake.on_event = event
        for expected in (-signal.SIGKILL, 0):
            process = subprocess.Popen(command, cwd=ROOT, env=os.environ | fake.environment())
            assert process.wait(timeout=300) == expected
        return fake


@pytest.mark.parametrize("moment", ["batch", "poll", "results"])
def test_a_batch_is_found_again_after_a_kill_at_any_moment(tmp_path, moment):
    """Even between the service taking it and its id arriving here."""
    fake = killed_at(moment, "batches", tmp_path / "j")
    assert len(fake.batches) == 1 and set(fake.billed.values()) == {1} and len(fake.billed) == 20


def test_a_killed_direct_job_pays_twice_at_most_for_the_calls_in_flight(tmp_path):
    fake = killed_at("message", "direct", tmp_path / "j", count=10)
    assert len(fake.billed) == 20
    assert sum(fake.billed.values()) - 20 <= DIRECT.concurrency


def test_a_batch_of_another_job_is_not_taken_for_ours(served, monkeypatch, tmp_path):
    """Of two batches of one size, only the one with our names in it is collected."""
    with Journal(tmp_path / "journal.jsonl") as journal:
        journal.sending("batch-ours", [request("a").id])

    def others(fake):
        fake.new_batch([{"custom_id": request("z").id, "params": request("z").params}])

    answers, fake = served(["a"], BATCHES, prepare=others)
    assert words(answers, "a") == ("ok", "A")
    assert len(fake.batches) == 2
    assert '"failure"' not in (tmp_path / "journal.jsonl").read_text()  # the other one's results were not read for ours


# What it costs


def test_a_batch_costs_half_and_an_unknown_model_an_unknown_amount(served):
    direct, _ = served(["hello"], DIRECT, journal="d")
    batch, _ = served(["hello"], BATCHES, journal="b")
    usage = direct[request("hello")].message["usage"]
    dollars = (usage["input_tokens"] * 1.0 + usage["output_tokens"] * 5.0) / 1e6
    assert direct.ledger["cost_dollars"] == pytest.approx(dollars, abs=1e-6)
    assert batch.ledger["cost_dollars"] == pytest.approx(dollars / 2, abs=1e-6)
    assert PRICES.dollars("claude-unheard-of", 10, 10, False) is None


def test_the_cost_is_said_before_anything_is_sent(served, capsys):
    served(["hello"] * 3, BATCHES)
    line = capsys.readouterr().out.splitlines()[0]
    assert "1 distinct requests, 0 answered" in line and "Message Batches" in line and PRICES.date in line


def test_the_key_is_in_no_file(served, tmp_path, capsys):
    served(["a"], DIRECT)
    served(["b"], BATCHES)
    out = capsys.readouterr()
    assert KEY not in (tmp_path / "journal.jsonl").read_text() + out.out + out.err


def test_the_server_refuses_what_the_service_refuses(served):
    """The stand-in itself: a test that passes against it must mean something."""
    schema = {"type": "object", "properties": {"a": {"type": "boolean"}}, "required": ["a"]}
    for wrong in (
        {"top_p": 1},
        {"messages": [{"role": "assistant", "content": "x"}]},
        {"messages": [{"role": "user", "content": ""}]},
        {"output_config": {"format": {"type": "json_schema", "schema": schema}}},
    ):
        problem = FakeAnthropic().problem(request("x").params | wrong)
        assert problem and problem[0] == 400, json.dumps(wrong)
