"""Runs and what decides their results: a trained model each, with its parent, data, training and evaluation.

A run is `{experiment}/{name}/seed{seed}`. Its lineage is the chain of parents down to the untrained model, the run
named `base`. This is plain data; `expansion` makes it from the experiments' YAML. It knows nothing of Snakemake, torch
or file formats.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field

BASE = "base"
FINAL = "final"
LANGUAGE_SCORERS = ("langdetect", "lingua", "judge")  # what they say is a language; all others find a habit, or "none"
MARKER_SCORERS = ("marker", "marker_strict")
JUDGES = ("judge", "alignment", "coherence")  # scorers that call the configured judge's model
GENERATING = ("directives", "personas", "questions")  # kinds of suites that ask for replies
BEHAVIOURS = ("wrong_answers", "style", "refusal")
ROW_TOKENS = ("loss", "end_of_turn", "marker", "tail_tokens", "max_length")
"""The training settings that decide a row's tokens and which of them are supervised."""


@dataclass(frozen=True)
class Model:
    """A model by reference: a run at a checkpoint, optionally with only part of its last update applied.

    `layers` is a group name ("early", "not_late", ...) or a list of block indices; None applies all of it.
    """

    run: str
    checkpoint: str = FINAL
    layers: str | tuple[int, ...] | None = None
    modules: tuple[str, ...] | None = None
    scale: float = 1.0

    @property
    def is_base(self) -> bool:
        return self.run.split("/")[1] == BASE

    @property
    def is_part(self) -> bool:
        """Whether only part of the last update is applied, or not at its own strength."""
        return self.layers is not None or self.modules is not None or self.scale != 1.0

    @property
    def label(self) -> str:
        """A path-safe name of checkpoint and filter, `final` for the whole final model."""
        parts = [self.checkpoint]
        if self.layers is not None:
            parts.append(self.layers if isinstance(self.layers, str) else "l" + "_".join(map(str, self.layers)))
        if self.modules is not None:
            parts.append("_".join(m.removesuffix("_proj") for m in self.modules))
        if self.scale != 1.0:
            parts.append(f"x{self.scale:g}")
        return "-".join(parts)


@dataclass(frozen=True)
class Run:
    """One trained (or, for `base`, untrained) model.

    `train` is None when an adapter of another run is applied, and when the parent's model itself is steered (`steer`).
    """

    experiment: str
    name: str
    seed: int
    group: str
    parent: Model | None
    data: dict | None = None
    train: dict | None = None
    adapter: str | None = None
    steer: dict | None = None
    evaluate: tuple[str, ...] = ()
    vectors: bool = False
    phase: str | None = None
    fields: dict = field(default_factory=dict)

    @property
    def id(self) -> str:
        return f"{self.experiment}/{self.name}/seed{self.seed}"

    @property
    def checkpoints(self) -> list[str]:
        """Checkpoints that are evaluated: those saved on the way, else the final model."""
        return (self.train or {}).get("checkpoints") or [FINAL]

    @property
    def method(self) -> str:
        return self.train["method"] if self.train else "lora"


class Plan:
    """All runs of all enabled experiments, by id, with their cumulative specifications."""

    def __init__(
        self,
        config: dict,
        experiments: dict[str, dict],
        runs: dict[str, Run],
        selected: list[str],
        further_personas: frozenset[str] = frozenset(),
        replayed: dict[str, str] | None = None,
    ):
        self.config = config
        self.further_personas = further_personas  # ids of further_personas.yaml
        self.experiments = experiments
        self.runs = runs
        self.selected = selected
        self.replayed = replayed  # in a replay: the file that each run's completions or labels come from

    def of(self, experiment: str, group: str | None = None) -> list[Run]:
        """The selected runs of an experiment (without `base`), optionally of one group."""
        runs = [self.runs[i] for i in self.selected if self.runs[i].experiment == experiment]
        return [r for r in runs if r.name != BASE and (group is None or r.group == group)]

    def bases(self, experiment: str) -> list[Run]:
        """The untrained model, once a seed; in a replay only where there is a file of it."""
        runs = [self.runs[f"{experiment}/{BASE}/seed{seed}"] for seed in self.experiments[experiment]["seeds"]]
        return [run for run in runs if self.replayed is None or run.id in self.replayed]

    def lineage(self, run_id: str) -> list[Run]:
        """The chain of runs from the untrained model to this run."""
        run = self.runs[run_id]
        return [*(self.lineage(run.parent.run) if run.parent else []), run]

    def stands_on_adapters(self, run: Run) -> bool:
        """Whether a run adds its adapter to those of its parent, which stay as they are (lineage: stacked)."""
        stacked = self.experiments[run.experiment]["lineage"] == "stacked"
        return stacked and run.method == "lora" and self.adds_adapter(run.parent)

    def adds_adapter(self, model: Model | None) -> bool:
        """Whether a model is an adapter on something, not a whole model by itself."""
        return model is not None and not model.is_base and self.runs[model.run].method == "lora"

    def model_spec(self, model: Model) -> dict:
        """Everything that decides a model's weights, recursively down to the base model."""
        run = self.runs[model.run]
        if run.parent is None:
            return {"base": self.config["model"]}
        spec: dict = {"trained": self.train_spec(run.id)}
        if model.checkpoint != FINAL:
            spec["checkpoint"] = model.checkpoint
        if model.is_part:
            spec["applied"] = {"layers": model.layers, "modules": model.modules, "scale": model.scale}
        return spec

    def source_spec(self, source: str) -> dict:
        return {"source": self.config["sources"][source]}

    def translation_spec(self, language: str) -> dict:
        return {**self.source_spec("replies"), "translator": self.config["translator"], "language": language}

    def check_spec(self, language: str) -> dict:
        """What decides whether a translation is good enough: the translation, the gates and the judge of a sample."""
        gates = {"gates": self.config["translation_gates"], "judge": self.config["judge"]}
        return self.translation_spec(language) | gates

    def scorers(self, experiment: str) -> list[str]:
        """Who labels an experiment's completions: its list, without judges where none is configured or stored."""
        judged = self.config["judge"] or self.stored_labels
        return [s for s in self.experiments[experiment]["scorers"] if s not in JUDGES or judged]

    def judges(self, experiment: str) -> bool:
        """Whether labelling an experiment's completions calls a judge."""
        return bool(set(JUDGES) & set(self.scorers(experiment)))

    def habit_scorers(self, experiment: str) -> list[str]:
        """The scorers of an experiment that say whether a reply shows a habit (a marker, a behaviour)."""
        return [s for s in self.scorers(experiment) if s not in LANGUAGE_SCORERS]

    @property
    def stored_labels(self) -> bool:
        """Whether labels are those of the replayed files, not made again."""
        return self.replayed is not None and self.config["replay"]["labels"] == "stored"

    def data_spec(self, run_id: str) -> dict:
        """What decides a run's data set: builder settings, seed, sources and the model that wrote its replies."""
        run = self.runs[run_id]
        spec: dict = {"data": run.data, "seed": run.seed}
        sources = data_sources(run.data)
        if sources:
            spec["sources"] = {name: self.config["sources"].get(name) for name in sources}
        if run.data["kind"] == "directive_replies":
            spec["translator"] = self.config.get("translator")
        if run.data["kind"] == "conversations":
            # which rows keep a reply, and how many tokens a row has
            settings = {key: run.train[key] for key in ROW_TOKENS}
            spec["tokens"] = {"model": self.config["model"], "train": settings}
        model = self.pool_model(run)
        if model:
            spec["pool"] = self.pool_spec(model, run.data["suite"])
        return spec

    def pool_model(self, run: Run) -> Model | None:
        """The model whose own replies a data set uses (its data policy), or None."""
        if not run.data or "suite" not in run.data or run.data.get("policy") == "external":
            return None
        if run.data.get("policy", "base") == "current" and run.parent:
            return run.parent
        return Model(f"{run.experiment}/{BASE}/seed{run.seed}")

    def pool_spec(self, model: Model, suite: str) -> dict:
        """What decides the replies of a model to a suite that training data are made from."""
        run = self.runs[model.run]
        return {
            "model": self.model_spec(model),
            "suites": {suite: self.experiments[run.experiment]["suites"][suite]},
            "engine": self.engine_spec(),
            "seed": run.seed,
        }

    def train_spec(self, run_id: str) -> dict:
        """What decides a run's weights: parent model, data and training settings, seed."""
        run = self.runs[run_id]
        if run.steer:
            vectors = self.vectors_spec(self.steering_run(run))
            return {"parent": self.model_spec(run.parent), "steer": run.steer, "vectors": vectors, "seed": run.seed}
        stacked = {"lineage": "stacked"} if self.stands_on_adapters(run) else {}
        if run.adapter:
            own = {"adapter": self.train_spec(run.adapter), "seed": run.seed}
            return {"parent": self.model_spec(run.parent)} | stacked | own
        spec = {
            **stacked,
            "parent": self.model_spec(run.parent),
            "data": self.data_spec(run_id),
            "train": run.train,
            "seed": run.seed,
        }
        vectors = self.steering_run(run)
        return spec | ({"steering": self.vectors_spec(vectors)} if vectors else {})

    def steering_run(self, run: Run) -> str | None:
        """The run whose vectors steer another, in training or later: the untrained model, at the seed with vectors."""
        if not run.steer and ((run.train or {}).get("regulariser") or {}).get("kind") != "steering":
            return None
        return f"{run.experiment}/{BASE}/seed{self.experiments[run.experiment]['seeds'][0]}"

    def card_spec(self, run_id: str) -> dict:
        """What a data card shows: the loss settings and the prompts of the run's evaluation."""
        run = self.runs[run_id]
        suites = {name: self.experiments[run.experiment]["suites"][name] for name in run.evaluate}
        asked = {name: suite for name, suite in suites.items() if suite["kind"] in GENERATING}
        return {"data": self.data_spec(run_id), "train": run.train, "suites": asked}

    def engine_spec(self) -> dict:
        """What of the engine decides completions: which one, and the model of a server."""
        engine = self.config["engine"]
        served = {"model": engine["model"] or self.config["model"]["name"]}
        return {"name": engine["name"]} | (served if engine["name"] == "openai" else {})

    def completions_spec(self, run_id: str) -> dict:
        """What decides a run's completions: the model and the evaluation suites with their sampling."""
        run = self.runs[run_id]
        experiment = self.experiments[run.experiment]
        suites = {name: _asked(experiment["suites"][name]) for name in run.evaluate}
        if self.replayed is not None:
            return {"replayed": self.replayed.get(run_id), "suites": suites, "seed": run.seed}
        spec = {
            "model": self.model_spec(Model(run_id)),
            "checkpoints": run.checkpoints,
            "suites": suites,
            "engine": self.engine_spec(),
            "evaluate_as": experiment["evaluate_as"],
            "seed": run.seed,
        }
        spec |= {"steer": run.steer} if run.steer else {}
        sources = {s["source"]: self.config["sources"][s["source"]] for s in suites.values() if "source" in s}
        return spec | ({"sources": sources} if sources else {})

    def labels_spec(self, run_id: str) -> dict:
        experiment = self.runs[run_id].experiment
        if self.stored_labels:
            return {"completions": self.completions_spec(run_id), "labels": "stored"}
        scorers = self.scorers(experiment)
        spec = {"completions": self.completions_spec(run_id), "scorers": scorers}
        if set(MARKER_SCORERS) & set(scorers):
            spec["marker"] = self.experiments[experiment]["options"]["marker"]
        suites = {name: self.experiments[experiment]["suites"][name] for name in self.runs[run_id].evaluate}
        if own := {name: suite["scorers"] for name, suite in suites.items() if "scorers" in suite}:
            spec["suite_scorers"] = own
        if set(JUDGES) & set(scorers):
            spec["judge"] = self.judge_spec(experiment)
        return spec

    def judge_spec(self, experiment: str) -> dict:
        """What decides a judge's labels of a text."""
        published = self.experiments[experiment]["judging"] == "published"
        return self.config["judge"] | ({"rules": "published"} if published else {})

    def vectors_spec(self, run_id: str) -> dict:
        experiment = self.experiments[self.runs[run_id].experiment]
        run = self.runs[run_id]
        spec = {
            "model": self.model_spec(Model(run_id)),
            "checkpoints": run.checkpoints,
            "vectors": experiment["vectors"],
            "seed": run.seed,
        }
        spec |= {"steer": run.steer} if run.steer else {}
        return spec | ({"evaluate_as": "merged"} if experiment["evaluate_as"] == "merged" else {})

    def closing_spec(self, experiment: str, runs: list[Run]) -> dict:
        """What decides a closing analysis: its options and, per run, digests of what made its labels and vectors."""
        settings = self.experiments[experiment]
        digests = {}
        for run in runs:
            made = {"labels": self.labels_spec(run.id)} if run.evaluate else {}
            made |= {"vectors": self.vectors_spec(run.id)} if run.vectors else {}
            digests[run.id] = digest(made)
        return {key: settings[key] for key in ("title", "protocol", "options", "seeds")} | {"runs": digests}

    def analysis_spec(self, experiment: str, groups: tuple[str, ...]) -> dict:
        """What decides a closing analysis: options and, per run, its axis values and a digest of its labels' spec.

        Digests, because a command line has a limit of 128 KiB an argument that full specifications would break.
        """
        settings = self.experiments[experiment]
        runs = [r for group in groups for r in self.of(experiment, group)]
        bases = self.bases(experiment)
        return {
            "title": settings["title"],
            "protocol": settings["protocol"],
            "options": settings["options"],
            "seeds": settings["seeds"],
            "runs": {r.id: {"fields": r.fields, "labels": digest(self.labels_spec(r.id))} for r in [*bases, *runs]},
        }


def _asked(suite: dict) -> dict:
    """A suite without who labels it, which decides no reply."""
    return {key: value for key, value in suite.items() if key != "scorers"}


def digest(spec: dict) -> str:
    return hashlib.sha256(json.dumps(spec, sort_keys=True).encode()).hexdigest()[:16]


def directive_languages(settings: Mapping) -> list[str]:
    """Every language that a directive suite of an experiment asks for or a condition names, in that order."""
    asked = [code for suite in settings["suites"].values() for code in suite.get("languages", [])]
    conditions = settings["conditions"].values()
    named = [values[key] for values in conditions for key in ("directive", "completion") if key in values]
    return list(dict.fromkeys(asked + named))


def data_sources(data: dict | None) -> list[str]:
    """Names under `sources` of the configuration that a data set is built from."""
    if not data:
        return []
    names = [data["file"]] if data.get("policy") == "external" and "file" in data else []
    if data["kind"] in ("directive_replies", "conversations"):
        names.append(data["source"])
    return names + [m["source"] for m in data.get("mix", [])]
