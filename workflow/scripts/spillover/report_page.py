"""The report: one offline page that opens with the answers, then each experiment's figure, claims, caveats and cost.

It is generic: an experiment appears with whatever its closing analysis made. Read are every PNG, `summary.md` (shown
as it is), of `summary.json` the keys `answer` and `caveats`, and the experiment's rows of the claims table. The page
decides nothing and computes nothing but sums of costs and shares of labels.
"""

from __future__ import annotations

import base64
import json
import re
from collections import Counter
from pathlib import Path

import jinja2
import yaml
from docutils.core import publish_parts
from markdown_it import MarkdownIt

from spillover import report_facts
from spillover.claims import WITHHELD, would_decide
from spillover.plan import JUDGES

# How a verdict is coloured; a word that is not here is neutral.
GOOD = {"appears", "supported", "holds", "pass", "passed", "reproduced", "confirmed"}
BAD = {"does not appear", "not supported", "fails", "fail", "failed", "refuted", "not reproduced"}
ENDS = {"im_end": "<|im_end|>", "newline": "the newline after <|im_end|>"}


def section(about: dict, captions: Path, claims: list[dict], caveats: list[str], found: list[dict]) -> dict:
    """Everything the page shows of one experiment.

    `about` comes from Files.report_sections, with `settings`, `model`, `judge` and `replay` added; `found` are the
    experiment's manifests, `claims` its rows of claims.parquet, `caveats` sentences from its labels.
    """
    folder = Path(about["folder"])
    numbers = _json(folder / "summary.json") if about["summary"] else {}
    alarms = list(dict.fromkeys(alarm for claim in claims for alarm in claim["alarms"]))
    seeds = about["settings"]["seeds"]
    generic = ["One seed: intervals cover the sampling of completions, not what another training run would give."]
    given = [str(caveat) for caveat in numbers.get("caveats", [])]
    once = generic if len(seeds) == 1 and not any("ne seed" in c or c.startswith("1 seed") for c in given) else []
    text = (folder / "summary.md").read_text(encoding="utf-8") if about["summary"] else ""
    return about | {
        "figures": [_figure(folder / name, captions) for name in about["figures"]],
        "answer": None if alarms else numbers.get("answer"),
        "claims": [
            claim
            | {"tone": _tone(claim["verdict"]), "decides": "" if claim["verdict"] == WITHHELD else would_decide(claim)}
            for claim in claims
        ],
        "tally": ", ".join(f"{verdict} {n}" for verdict, n in Counter(c["verdict"] for c in claims).most_common()),
        "alarms": alarms,
        "summary_html": markdown(text),
        "caveats": [*once, *given, *caveats],
        "costs": report_facts.costs(found),
        "ran": report_facts.how_it_ran(found),
        "methods": methods(about["settings"], about["model"], about["judge"], about["replay"]),
        "spec": yaml.safe_dump(about["settings"], sort_keys=False, allow_unicode=True, width=100),
    }


def page(sections: list[dict], *, title: str, config: dict, folder: Path, workflow_report: str) -> str:
    """The whole page. `folder` is workflow/report; `workflow_report` the address of Snakemake's own report."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(folder / "page"), autoescape=True, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters |= {"hours": _hours, "count": lambda value: f"{value:,.0f}", "unbroken": _unbroken}
    total = report_facts.costs([manifest for part in sections for manifest in part["manifests"]])
    return environment.get_template("report.html").render(
        sections=sections,
        title=title,
        total=total[-1] if total else None,
        config=yaml.safe_dump(config, sort_keys=False, allow_unicode=True, width=100),
        style=(folder / "page/report.css").read_text(encoding="utf-8"),
        workflow_report=workflow_report,
    )


def markdown(text: str) -> str:
    """A summary as HTML, without its own title and with its headings two levels down; raw HTML in it stays text."""
    lines = text.splitlines()
    if lines and lines[0].startswith("# "):
        lines = lines[1:]
    lowered = [f"##{line}" if line.startswith("#") else line for line in lines]
    return MarkdownIt("commonmark", {"html": False}).enable("table").render("\n".join(lowered))


def methods(settings: dict, model: dict, judge: dict | None, replay: dict | None = None) -> str:
    """A methods paragraph ready for a paper, from the specification alone."""
    if replay:
        what = "Completions and labels" if replay["labels"] == "stored" else "Completions"
        words = (
            f"{what} were read from files that were made elsewhere; nothing was trained or sampled for this analysis."
        )
        return " ".join([words, *_labelling(settings, judge)])
    train = settings["train"]
    name = {"small": "the project's small world model (5.5 million parameters)"}.get(model["name"], model["name"])
    revision = f" (revision {model['revision'][:12]})" if model.get("revision") else ""
    seeds = f"seed{'s' * (len(settings['seeds']) > 1)} {_listed(settings['seeds'])}"
    parts = [f"All models start from {name}{revision}, in {model['dtype']}; {seeds}."]
    if train:
        parts.append(_training(train, _varied(settings)))
    sampled = {
        key: suite for key, suite in settings["suites"].items() if key in _evaluated(settings) and "samples" in suite
    }
    asked = [_suite(key, suite) for key, suite in sampled.items()]
    if asked:
        top = {suite.get("top_p") for suite in sampled.values()}
        how = {"adapter": "with their adapter", "merged": "merged"}.get(
            settings["evaluate_as"], settings["evaluate_as"]
        )
        parts.append(
            f"Models were evaluated {how} on {'; '.join(asked)}" + (f" (top-p {_listed(top)})." if top else ".")
        )
    parts += _labelling(settings, judge)
    if vectors := settings.get("vectors"):
        layers = ", ".join(map(str, vectors["layers"]))
        parts.append(f"Directions are mean activations at the output of decoder blocks {layers}.")
    parts.append(
        f"The protocol is “{settings['protocol']}”: "
        + (
            "as the original code ran, quirks included."
            if settings["protocol"] == "published"
            else "as written up, with its errors mended."
        )
    )
    return " ".join(parts)


def _labelling(settings: dict, judge: dict | None) -> list[str]:
    scorers = [s for s in settings["scorers"] if s not in JUDGES]
    if judge and set(JUDGES) & set(settings["scorers"]):
        asked = " and ".join(s for s in settings["scorers"] if s in JUDGES[1:])
        sight = "the request as well" if settings["judging"] == "published" else "the reply alone"
        scorers.append(f"{judge['model']} as a judge that sees {sight}" + (f" ({asked})" if asked else ""))
    if not scorers:
        return []
    return [f"Replies were labelled by {_listed(scorers)}; a label that failed counts as failed, not as a label."]


def _groups(settings: dict) -> list[dict]:
    """The selected groups of runs that have a run: none of their axes is empty."""
    names = settings["select"].get("groups") or list(settings["runs"])
    found = [settings["runs"][name] for name in names]
    return [group for group in found if all(settings["axes"].get(axis, True) for axis in _axes(group))]


def _axes(group: dict) -> list[str]:
    return [axis for over in group["over"] for axis in (over if isinstance(over, list) else [over])]


def _evaluated(settings: dict) -> set[str]:
    """The suites that some model is measured on; others only make training rows."""
    return {*settings["base_evaluate"], *(suite for group in _groups(settings) for suite in group["evaluate"])}


def _varied(settings: dict) -> dict:
    """{setting: its values} of every training setting that each trained group chooses for itself."""
    chosen = [group["train"] for group in _groups(settings) if not (group.get("adapter") or group.get("steer"))]
    found = {}
    for key in set.intersection(*map(set, chosen)) if chosen else ():
        values = []
        for train in chosen:
            axis = train[key].strip("{}") if isinstance(train[key], str) and "{" in train[key] else None
            values += settings["select"].get(axis) or settings["axes"][axis] if axis else [train[key]]
        found[key] = list(dict.fromkeys(values))
    return found


def _training(train: dict, varied: dict) -> str:
    """The common training settings, and the values of those that every run chooses for itself (`varied`).

    What only some runs choose is not among them and stays out.
    """
    has = {key: value for key, value in train.items() if not isinstance(value, str) or "{" not in value}
    has |= {key: _listed(values, "or") for key, values in varied.items() if key != "loss"}
    words = {
        "learning_rate": "learning rate {}",
        "steps": "{} steps",
        "epochs": "{} epochs",
        "batch_size": "batch size {}",
        "schedule": "{} schedule",
        "loss": "loss on {} tokens",
    }
    parts = [text.format(has[key]) for key, text in words.items() if has.get(key) is not None]
    parts = [part.removesuffix("s") if part in ("1 epochs", "1 steps") else part for part in parts]
    if has.get("end_of_turn"):
        parts.append(f"supervision ending at {ENDS.get(has['end_of_turn'], has['end_of_turn'])}")
    if has.get("method", "lora") == "full":
        return f"Unless a run says otherwise, all weights were trained: {', '.join(parts)}."
    scale = ", rank-stabilised scaling" if has.get("rslora") else ""
    lora = f"LoRA of rank {has.get('rank')} (alpha {has.get('alpha')}, dropout {has.get('dropout')}{scale})"
    return f"Unless a run says otherwise, adapters are {lora}, trained with {', '.join(parts)}."


def _suite(name: str, suite: dict) -> str:
    what = next(key for key in ("languages", "personas", "systems") if suite.get(key))
    kind = {"languages": "language", "personas": "persona", "systems": "system prompt"}[what]
    cells = suite[what]
    number = f"{len(cells)} {kind}{'s' * (len(cells) > 1)}" if isinstance(cells, list) else f"{kind}s “{cells}”"
    samples = "1 sample" if suite["samples"] == 1 else f"{suite['samples']} samples"
    return (
        f"{name.replace('_', ' ')}: {number}, {samples} a prompt at temperature {suite.get('temperature')}, at most "
        f"{suite.get('max_tokens')} tokens"
    )


def _figure(path: Path, captions: Path) -> dict:
    caption = captions / f"{path.stem}.rst"
    text = caption.read_text(encoding="utf-8") if caption.is_file() else ""
    data = base64.b64encode(path.read_bytes()).decode()
    body = publish_parts(text, writer="html5")["body"] if text else ""
    return {"name": path.stem.replace("_", " "), "data": data, "caption": body, "alt": " ".join(text.split())}


def _tone(verdict: str) -> str:
    return "good" if verdict in GOOD else "bad" if verdict in BAD else "open"


def _json(path: Path) -> dict:
    found = json.loads(path.read_text(encoding="utf-8"))
    return found if isinstance(found, dict) else {}


def _listed(values, last: str = "and") -> str:
    words = [str(value) for value in values]
    return ", ".join(words[:-1]) + (f" {last} " if len(words) > 1 else "") + words[-1]


def _unbroken(text: str | None) -> str:
    """The text, in which no line ends between a number and its percent sign."""
    return re.sub(r"(?<=\d) %", "\N{NO-BREAK SPACE}%", text or "")


def _hours(seconds: float) -> str:
    """`40 s`, `12 min` or `3.4 h`."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:,.1f} h"
