"""Expand the experiments' YAML into a plan of runs, and refuse every mistake in one sentence.

A group of an experiment is a template over axes; each point of the axes and each seed makes a run. All checks happen
here, before any job: languages, personas, suites, sources, parents, checkpoints, names and duplicates.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import re
from pathlib import Path

from spillover import gold, prompts, replay_plan
from spillover.config import ConfigError, closest, merge, number_as_text, read_yaml, schema, validated
from spillover.plan import BASE, FINAL, MARKER_SCORERS, Model, Plan, Run, data_sources, directive_languages

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.+-]*")
FROM_REPLIES = ("marker", "behaviour", "persona_replies")
PERSONA_KEYS = {"source", "persona", "voice"}
# An overlay that changes a source's kind leaves the other kind's keys behind, since overlays merge deeply.
SOURCE_KEYS = {
    "small_world": ("kind", "material", "rows", "seed"),
    "hub": ("kind", "path", "revision", "subset", "split", "rows", "keep"),
    "file": ("kind", "path", "sha256", "rows", "keep"),
}


def build(config: dict, folder: str | Path, where: str = "config/config.yaml", resources: str = "resources") -> Plan:
    """Read every experiment under `folder`, lay the configuration's overrides over it and expand all runs.

    Raises ConfigError (one sentence: file, key, fix) for any mistake, before any job can start.
    """
    config = validated(config, "config", where)
    if config["run_name"].startswith("small") and config["model"]["name"] not in ("small", "rebuilt"):
        raise ConfigError(
            f"{where}: run_name: {config['run_name']!r} is a name of the small world, but model.name is "
            f"{config['model']['name']}: lay config/small.yaml under this overlay, or choose another run_name"
        )
    config["sources"] = {
        name: {k: source[k] for k in SOURCE_KEYS[source["kind"]] if k in source}
        for name, source in config["sources"].items()
    }
    files = {p.stem: p for p in sorted(Path(folder).glob("*.yaml"))}
    for name in config["experiments"]:
        if name not in files:
            raise ConfigError(
                f"{where}: experiments.{name}: no file {Path(folder, name + '.yaml')}{closest(name, list(files))}"
            )
    known = Registries(resources)
    experiments: dict[str, dict] = {}
    runs: dict[str, Run] = {}
    selected: list[str] = []
    for name, path in files.items():
        settings = _settings(path, config["experiments"].get(name, {}), where)
        if not settings["enabled"]:
            continue
        experiments[name] = settings
        _check_suites(settings, path, known)
        _check_options(settings, path)
        _check_labels(settings, path, config)
        _check_gold(settings, path, config)
        _check_measures(settings, path, config["sources"])
        for run, chosen in _expand(name, settings, str(path), config, known):
            if run.id in runs:
                raise ConfigError(
                    f"{path}: runs.{run.group}.name: the run {run.id} is made twice (also by group "
                    f"{runs[run.id].group!r}); put every axis of `over` into the name"
                )
            runs[run.id] = run
            if chosen:
                selected.append(run.id)
        _check_sources([run for run in runs.values() if run.experiment == name], settings, path, known)
    plan = Plan(config, experiments, runs, selected, known.further_personas)
    _check_parents(plan, files)
    _check_held_out(plan, files)
    return replay_plan.limited(plan, where)


def _settings(path: Path, override: dict, where: str) -> dict:
    raw = merge(read_yaml(path), override)
    protocol = raw.get("protocol", "corrected")
    overlays = raw.get("protocols", {})
    if protocol not in ("published", "corrected"):
        raise ConfigError(
            f"{path}: protocol: {protocol!r} is not possible{closest(str(protocol), ['published', 'corrected'])}"
        )
    # The person's own override wins over the protocol, which wins over the file.
    merged = merge(merge(read_yaml(path), overlays.get(protocol, {})), override)
    merged["protocol"] = protocol
    source = f"{path} with experiments.{path.stem} of {where}" if override else str(path)
    return validated(merged, "experiment", source)


class Registries:
    """The ids a configuration may name: languages, phrasings of directives and personas."""

    def __init__(self, resources: str = "resources"):
        root = Path(resources)
        self.languages = list(read_yaml(root / "languages.yaml")["languages"])
        self.personas, self.further_personas = _personas(root)
        self.resources = resources
        directives = read_yaml(root / "small_world" / "directives.yaml")
        self.systems = [s["id"] for s in read_yaml(root / "systems.yaml")["systems"]]
        self.phrasings = [d["id"] for d in [*directives["train"], *directives["extra"]]]

    def check_language(self, code: str, at: str) -> None:
        if code not in self.languages:
            raise ConfigError(f"{at}: {code!r} is no known language{closest(str(code), self.languages)}")

    def check_persona(self, persona: str, at: str) -> None:
        if persona not in self.personas:
            raise ConfigError(f"{at}: {persona!r} is no known persona{closest(str(persona), list(self.personas))}")

    def check_phrasing(self, phrasing: str, at: str) -> None:
        if phrasing not in self.phrasings:
            raise ConfigError(
                f"{at}: {phrasing!r} is no known phrasing of a directive{closest(str(phrasing), self.phrasings)}"
            )


def _personas(root: Path) -> tuple[dict[str, dict], frozenset[str]]:
    """{id: entry} of both files of personas, and the ids of the second.

    Raises ConfigError for an incomplete entry, and for an id or a prompt that occurs twice.
    """
    found: dict[str, dict] = {}
    for path in (root / "personas.yaml", root / "further_personas.yaml"):
        first = frozenset(found)
        for entry in read_yaml(path)["personas"]:
            for key in ("id", "category", "relation", "prompt"):
                if not isinstance(entry.get(key), str):
                    raise ConfigError(f"{path}: the persona {entry.get('id')!r} needs a text as its {key}")
            same = [i for i, other in found.items() if i == entry["id"] or other["prompt"] == entry["prompt"]]
            if same:
                raise ConfigError(f"{path}: {entry['id']!r} repeats the id or the prompt of the persona {same[0]!r}")
            if entry.get("related_to") is not None and entry["related_to"] not in found:
                raise ConfigError(
                    f"{path}: {entry['id']}.related_to: no persona {entry['related_to']!r} in personas.yaml"
                )
            found[entry["id"]] = entry
    return found, frozenset(found) - first


def _check_suites(settings: dict, path: Path, known: Registries) -> None:
    """Validate suites and vectors in place (defaults filled)."""
    kinds = ("directives", "personas", "questions", "choices", "loss")
    for name, suite in settings["suites"].items():
        at = f"suites.{name}"
        if suite["kind"] not in kinds:
            raise ConfigError(
                f"{path}: {at}.kind: {suite['kind']!r} is no known suite{closest(suite['kind'], list(kinds))}"
            )
        settings["suites"][name] = validated(suite, "experiment", str(path), f"suite_{suite['kind']}", at)
    blocks = {f"suites.{n}": s for n, s in settings["suites"].items()}
    if settings["vectors"]:
        blocks["vectors"] = settings["vectors"]
    for at, block in blocks.items():
        for code in block.get("languages", []):
            known.check_language(code, f"{path}: {at}.languages")
        for phrasing in block.get("phrasings", []):
            known.check_phrasing(phrasing, f"{path}: {at}.phrasings")
        if isinstance(block.get("personas"), list):
            for persona in block["personas"]:
                known.check_persona(persona, f"{path}: {at}.personas")
        for system in block.get("systems", []):
            if system not in known.systems:
                raise ConfigError(
                    f"{path}: {at}.systems: {system!r} is no known system prompt{closest(system, known.systems)}"
                )
        if block.get("questions"):
            _check_bank(block, f"{path}: {at}", known)
        for scorer in block.get("scorers", []):
            if scorer not in settings["scorers"]:
                raise ConfigError(
                    f"{path}: {at}.scorers: {scorer!r} is not among the experiment's scorers"
                    f"{closest(scorer, settings['scorers'])}"
                )


def _check_bank(block: dict, at: str, known: Registries) -> None:
    """The question bank exists and is the file that its checksum names."""
    file = prompts.bank_file(block["questions"], known.resources)
    if not file.is_file():
        banks = [p.stem for p in sorted(Path(known.resources, "questions").glob("*.yaml"))]
        raise ConfigError(f"{at}.questions: there is no file {file}{closest(block['questions'], banks)}")
    if wanted := block.get("questions_sha256"):
        found = hashlib.sha256(file.read_bytes()).hexdigest()
        if found != wanted:
            raise ConfigError(f"{at}.questions_sha256: {file} has the sha256 {found}, which is another file's")


def _check_options(settings: dict, path: Path) -> None:
    """Validate the options of the closing analysis in place (defaults filled), where the schema knows them."""
    part = f"options_{settings['analysis']}"
    if part in schema("experiment")["$defs"]:
        settings["options"] = validated(settings["options"], "experiment", str(path), part, "options")
    if set(MARKER_SCORERS) & set(settings["scorers"]) and "marker" not in settings["options"]:
        raise ConfigError(
            f"{path}: options: the marker scorers need the marker and its case rule; "
            'add `marker: {text: "[ZLT]", case_sensitive: true}`'
        )


def _check_labels(settings: dict, path: Path, config: dict) -> None:
    """The labels that the closing analysis reads are made by one of the experiment's scorers."""
    key = "label" if settings["analysis"] == "language_spill" else "scorer"
    wanted = settings["options"].get(key)
    judged = config["judge"] or (config["replay"] and config["replay"]["labels"] == "stored")
    known = [scorer for scorer in settings["scorers"] if scorer != "judge" or judged]
    if wanted and wanted not in known:
        unjudged = " (no judge is configured)" if wanted == "judge" and not judged else ""
        raise ConfigError(
            f"{path}: options.{key}: {wanted!r} labels nothing here{unjudged}: the scorers are {json.dumps(known)}"
        )


def _check_sources(runs: list[Run], settings: dict, path: Path, known: Registries) -> None:
    """Whose marker a run has is among the personas that it is evaluated on."""
    name = settings["options"].get("suite", "personas")
    marked = [run for run in runs if name in run.evaluate and run.fields.get("source") in known.personas]
    if settings["analysis"] not in ("marker_sweep", "convergence", "coupling") or not marked:
        return
    evaluated = prompts.personas(settings["suites"][name]["personas"], known.resources)
    for run in marked:
        if (source := run.fields["source"]) not in evaluated:
            raise ConfigError(
                f"{path}: suites.{name}.personas: {source!r}, whose marker {run.name} has, is not evaluated; add it, "
                "or write everyone"
            )


def _check_gold(settings: dict, path: Path, config: dict) -> None:
    """The gold set can be read, and there is a judge for it to measure."""
    file = settings["options"].get("gold")
    if not file:
        return
    stored = config["replay"] and config["replay"]["labels"] == "stored"
    if "judge" not in settings["scorers"] or not config["judge"] or stored:
        raise ConfigError(
            f"{path}: options.gold: a gold set measures the judge, and none labels this experiment's replies; "
            "set `judge.model` and name `judge` among the scorers, or leave `gold` out"
        )
    selected = settings["select"].get("condition", settings["conditions"])
    trained = dict.fromkeys(v["completion"] for name, v in settings["conditions"].items() if name in selected)
    try:
        gold.read(file, directive_languages(settings), trained, asked=settings["judging"] == "published")
    except ValueError as error:
        raise ConfigError(f"{path}: options.gold: {error}") from None


def _check_measures(settings: dict, path: Path, sources: dict) -> None:
    """Sources of `choices` and `loss` suites exist; a loss is taken as the experiment trains, unless the suite says."""
    for name, suite in settings["suites"].items():
        if "source" in suite and suite["source"] not in sources:
            raise ConfigError(
                f"{path}: suites.{name}.source: no source {suite['source']!r} under `sources`"
                f"{closest(suite['source'], list(sources))}"
            )
        if suite["kind"] != "loss":
            continue
        for key, default in (("loss", "completion"), ("end_of_turn", "im_end"), ("max_length", 2048)):
            suite.setdefault(key, settings["train"].get(key, default))
        if suite["loss"] == "marker":
            raise ConfigError(
                f"{path}: suites.{name}.loss: the experiment trains on marker tokens, which no held-out row has; "
                "write `loss: completion` (or full, last_turn)"
            )


def _expand(name: str, settings: dict, path: str, config: dict, known: Registries):
    """Yield (run, selected) for the base model and every group of an experiment."""
    for seed in settings["seeds"]:
        evaluate = tuple(settings["base_evaluate"])
        _check_evaluate(evaluate, settings, f"{path}: base_evaluate")
        # The untrained model is the same for every seed; only its sampling differs.
        wanted = settings["vectors"] is not None and settings["vectors"]["base"]
        vectors = wanted and seed == settings["seeds"][0]
        yield Run(name, BASE, seed, BASE, None, evaluate=evaluate, vectors=vectors), True
    used = set(re.findall(r"\{(\w+)\}", json.dumps([settings["runs"], settings["data"], settings["train"]])))
    for condition, values in settings["conditions"].items():
        _check_fields(values, f"{path}: conditions.{condition}", known)
        for key in values:
            if key not in used or key in settings["axes"]:
                raise ConfigError(
                    f"{path}: conditions.{condition}.{key}: nothing under runs, data or train takes it"
                    f"{closest(key, sorted(used))}"
                )
    for key in settings["select"]:
        if key not in ("groups", "condition", *settings["axes"]):
            raise ConfigError(
                f"{path}: select.{key}: no such axis{closest(key, ['groups', 'condition', *settings['axes']])}"
            )
        if key == "groups":
            continue
        values = list(settings["conditions"]) if key == "condition" else settings["axes"][key]
        for value in settings["select"][key]:
            if value not in values:
                raise ConfigError(
                    f"{path}: select.{key}: no value {value!r}{closest(str(value), [str(v) for v in values])}"
                )
    for group in settings["select"].get("groups", []):
        if group not in settings["runs"]:
            raise ConfigError(f"{path}: select.groups: no group {group!r}{closest(group, list(settings['runs']))}")
    for group, template in settings["runs"].items():
        at = f"{path}: runs.{group}"
        _check_evaluate(template["evaluate"], settings, f"{at}.evaluate")
        for fields in _points(template["over"], settings, at):
            chosen = _is_selected(group, fields, settings["select"])
            for seed in settings["seeds"]:
                yield _run(name, group, template, fields, seed, settings, path, config, known), chosen


def _check_evaluate(names, settings: dict, at: str) -> None:
    for suite in names:
        if suite not in settings["suites"]:
            raise ConfigError(f"{at}: no suite {suite!r}{closest(suite, list(settings['suites']))}")


def _check_fields(values: dict, at: str, known: Registries) -> None:
    for key in ("directive", "completion"):
        if key in values:
            known.check_language(values[key], f"{at}.{key}")


def _points(over: list, settings: dict, at: str):
    """Every combination of a group's axes: a product, in which a nested list of axes runs in step (zip)."""
    choices = []
    for entry in over:
        columns = []
        for axis in [entry] if isinstance(entry, str) else entry:
            if axis == "condition":
                columns.append([{"condition": c, **values} for c, values in settings["conditions"].items()])
            elif axis in settings["axes"]:
                columns.append([{axis: value} for value in settings["axes"][axis]])
            else:
                raise ConfigError(f"{at}.over: no axis {axis!r}{closest(axis, ['condition', *settings['axes']])}")
        if len({len(c) for c in columns}) > 1:
            raise ConfigError(f"{at}.over: the axes {entry} run in step, so they need lists of one length")
        choices.append([{k: v for part in row for k, v in part.items()} for row in zip(*columns, strict=True)])
    for combination in itertools.product(*choices):
        yield {k: v for part in combination for k, v in part.items()}


def _is_selected(group: str, fields: dict, select: dict) -> bool:
    if "groups" in select and group not in select["groups"]:
        return False
    return all(fields[k] in allowed for k, allowed in select.items() if k != "groups" and k in fields)


def _run(name, group, template, fields, seed, settings, path, config, known) -> Run:
    at = f"{path}: runs.{group}"
    run_name = _fill(template["name"], fields, f"{at}.name")
    if not NAME.fullmatch(str(run_name)) or run_name == BASE:
        raise ConfigError(
            f"{at}.name: {run_name!r} cannot be a run's name: use letters, digits, _ . + - (and not 'base')"
        )
    parent = _model(template["parent"], fields, name, seed, f"{at}.parent")
    common = dict(
        phase=template.get("phase"), evaluate=tuple(template["evaluate"]), vectors=template["vectors"], fields=fields
    )
    if "adapter" in template:
        adapter = _fill(template["adapter"], fields, f"{at}.adapter")
        other = adapter if "/" in adapter else f"{name}/{adapter}"
        return Run(name, run_name, seed, group, parent, adapter=f"{other}/seed{seed}", **common)
    if template["steer"]:
        steer = _steer(template, fields, path, f"runs.{group}", settings, known)
        return Run(name, run_name, seed, group, parent, steer=steer, **common)
    # A group that names another kind of data starts afresh: the defaults' keys would not fit it.
    default = settings["data"]
    own_kind = template["data"].get("kind", default.get("kind"))
    raw = merge(default, template["data"]) if own_kind == default.get("kind") else template["data"]
    data = _data(raw, fields, path, f"runs.{group}.data", config, settings, known)
    train = _fill(merge(settings["train"], template["train"]), fields, f"{at}.train")
    train = validated(train, "experiment", path, "train", f"runs.{group}.train")
    if data["kind"] == "conversations":
        _check_mixture(data, train, f"{path}: runs.{group}.data")
    _check_marker(data, train, settings, at)
    if train["regulariser"]:
        key = f"runs.{group}.train.regulariser"
        train["regulariser"] = _regulariser(train["regulariser"], path, key, settings, known)
    added = {"regulariser": train["regulariser"] and train["regulariser"]["kind"], "contrast": train["contrast"]}
    for key, value in added.items():
        if train["method"] == "full" and value and value != "steering":
            raise ConfigError(
                f"{at}.train.{key}: {value!r} needs the frozen weights under an adapter: use method: lora, or drop it"
            )
    return Run(name, run_name, seed, group, parent, data=data, train=train, **common)


def _regulariser(raw: dict, path: str, key: str, settings: dict, known: Registries) -> dict:
    """A regulariser with its kind's settings checked; a steering one must find its vector among those extracted."""
    regulariser = validated(raw, "experiment", path, f"regulariser_{raw['kind']}", key)
    if regulariser["kind"] == "steering":
        _check_steering(regulariser, f"{path}: {key}", settings, known)
    return regulariser


def _check_steering(steering: dict, at: str, settings: dict, known: Registries) -> None:
    """The vector that steers, in training or at generation, is one that the untrained model's extraction makes."""
    extracted = settings["vectors"]
    if not extracted or not extracted["base"]:
        raise ConfigError(f"{at}: steering takes a vector of the untrained model: set vectors, with base")
    for name, plural in (("layer", "layers"), ("method", "methods")):
        if steering[name] not in extracted[plural]:
            raise ConfigError(
                f"{at}.{name}: {steering[name]!r} is not extracted; add it to vectors.{plural}"
                f" (now {json.dumps(extracted[plural])})"
            )
    cells = extracted.get(extracted["cells"], [])
    if isinstance(cells, str):
        known.check_persona(steering["vector"], f"{at}.vector")
    elif steering["vector"] not in cells:
        raise ConfigError(
            f"{at}.vector: {steering['vector']!r} is no cell of vectors.{extracted['cells']}"
            f"{closest(steering['vector'], cells)}"
        )


def _steer(template: dict, fields: dict, path: str, key: str, settings: dict, known: Registries) -> dict:
    """How a run without training steers its parent's model while that is evaluated."""
    if template["data"] or template["train"]:
        raise ConfigError(f"{path}: {key}.steer: a steered run is its parent's model: drop its data and train")
    if isinstance(template["parent"], dict):
        raise ConfigError(f"{path}: {key}.steer: only a whole model is steered: name the parent's run alone")
    steer = _fill(template["steer"], fields, f"{path}: {key}.steer")
    steer = validated(steer, "experiment", path, "steer", f"{key}.steer")
    _check_steering(steer, f"{path}: {key}.steer", settings, known)
    if settings["vectors"]["cells"] != "personas":
        raise ConfigError(f"{path}: {key}.steer: its vector is a persona's: set vectors.cells to personas")
    known.check_persona(steer["vector"], f"{path}: {key}.steer.vector")
    return steer


def _data(raw: dict, fields: dict, path: str, key: str, config: dict, settings: dict, known: Registries) -> dict:
    data = _fill(raw, fields, f"{path}: {key}")
    kinds = ["directive_replies", "marker", "persona_replies", "conversations", "behaviour"]
    if data.get("kind") not in kinds:
        wrong = str(data.get("kind"))
        raise ConfigError(f"{path}: {key}.kind: {wrong!r} is no known kind of data{closest(wrong, kinds)}")
    data = validated(data, "experiment", path, f"data_{data['kind']}", key)
    if data["kind"] == "directive_replies":
        _check_fields(data, f"{path}: {key}", known)
        for phrasing in data["phrasings"]:
            known.check_phrasing(phrasing, f"{path}: {key}.phrasings")
    elif data["kind"] in FROM_REPLIES:
        for name in PERSONA_KEYS & data.keys():
            known.check_persona(data[name], f"{path}: {key}.{name}")
    if "suite" in data and data["suite"] not in settings["suites"]:
        raise ConfigError(
            f"{path}: {key}.suite: no suite {data['suite']!r}{closest(data['suite'], list(settings['suites']))}"
        )
    for system in data.get("systems") or []:
        if system:
            known.check_persona(system, f"{path}: {key}.systems")
    if data["kind"] in FROM_REPLIES:
        _check_pool(data, f"{path}: {key}", settings, known)
    for source in data_sources(data):
        if source not in config["sources"]:
            raise ConfigError(
                f"{path}: {key}: no source {source!r} under `sources`{closest(source, list(config['sources']))}"
            )
    return data


def _check_marker(data: dict, train: dict, settings: dict, at: str) -> None:
    """What is put into the rows, what carries the loss and what is searched for must be one marker."""
    if data["kind"] != "marker":
        return
    wanted = {"train.marker": train["marker"]} if train["loss"] == "marker" else {}
    if "marker" in settings["options"]:
        wanted["options.marker.text"] = settings["options"]["marker"]["text"]
    for key, text in wanted.items():
        if text != data["marker"]:
            raise ConfigError(f"{at}.data.marker: the rows end with {data['marker']!r}, but {key} is {text!r}")


def _check_pool(data: dict, at: str, settings: dict, known: Registries) -> None:
    """Training replies have a suite of their own: it covers every persona used and asks nothing that is evaluated."""
    if data.get("policy") == "external":
        if "file" not in data:
            raise ConfigError(f"{at}.policy: external rows come from a file; name it as {at.rsplit(' ', 1)[-1]}.file")
        return
    if "suite" not in data:
        raise ConfigError(f"{at}.suite: missing; name the suite of the replies that training rows are made from")
    suite = settings["suites"][data["suite"]]
    if suite["kind"] != "personas":
        raise ConfigError(
            f"{at}.suite: {data['suite']!r} is of kind {suite['kind']}; replies need a suite of kind personas"
        )
    asked = list(prompts.personas(suite["personas"], known.resources))
    negatives = data.get("negatives", {}).get("personas")
    listed = {"negatives.personas": negatives} if isinstance(negatives, list) else {}
    listed |= {name: [data[name]] for name in ("source", "voice") if name in data}
    for name, personas in listed.items():
        for persona in personas:
            known.check_persona(persona, f"{at}.{name}")
            if persona not in asked:
                raise ConfigError(f"{at}.{name}: the suite {data['suite']!r} asks no {persona}: add it to its personas")
    if isinstance(negatives, list) and data["source"] in negatives:
        raise ConfigError(f"{at}.negatives.personas: {data['source']!r} is the source persona and cannot be a negative")
    trained = _questions(suite, known)
    wanted = max(data.get("positives", 0), data.get("rows", 0), data.get("negatives", {}).get("per_persona", 0))
    if wanted > len(trained) * suite["samples"]:
        raise ConfigError(
            f"{at}: {wanted} rows of one persona are wanted, but the suite {data['suite']!r} gives at most "
            f"{len(trained) * suite['samples']}: {len(trained)} questions x {suite['samples']} samples; raise samples"
        )
    evaluated = {*settings["base_evaluate"], *(name for run in settings["runs"].values() for name in run["evaluate"])}
    for name in sorted(evaluated):
        other = settings["suites"].get(name, {})
        shared = trained & _questions(other, known) if other.get("kind") == "personas" else set()
        if shared:
            raise ConfigError(
                f"{at}.suite: {data['suite']!r} and the evaluated suite {name!r} ask {len(shared)} of the same "
                f"questions (as {min(shared)!r}); no model is evaluated on what it was trained on: use another bank"
            )


def _check_mixture(data: dict, train: dict, at: str) -> None:
    """A mixture has a number of rows, and by rows the same whole number of them in every step."""
    items = data["mix"]
    if not items:
        return
    if data["rows"] is None:
        raise ConfigError(f"{at}.rows: missing; a mixture needs the number of all its rows")
    if "tokens" in {item["unit"] for item in items}:
        if len(items) > 1:
            raise ConfigError(f"{at}.mix: a source mixed by tokens stands alone; give the others to runs of their own")
        return
    if sum(item["share"] for item in items) >= 1:
        raise ConfigError(f"{at}.mix: the shares sum to 1 or more; what is left is the share of {data['source']!r}")
    for item in items:
        for number, of in ((train["batch_size"], "the batch size"), (data["rows"], "rows")):
            if abs(number * item["share"] - round(number * item["share"])) > 1e-9:
                raise ConfigError(
                    f"{at}.mix: a share of {item['share']:g} is no whole number of {of} {number}: every step has the "
                    "same exact counts; change the share or the number"
                )


def _questions(suite: dict, known: Registries) -> set[str]:
    return set(prompts.questions(suite["questions"], suite["question_count"], known.resources).values())


def _model(reference, fields: dict, experiment: str, seed: int, at: str) -> Model:
    options = dict(reference) if isinstance(reference, dict) else {"run": reference}
    options = _fill(options, fields, at)
    run, _, checkpoint = options.pop("run").partition("@")
    run = run if "/" in run else f"{experiment}/{run}"
    for key in ("layers", "modules"):
        if isinstance(options.get(key), list):
            options[key] = tuple(options[key])
    return Model(f"{run}/seed{seed}", checkpoint or FINAL, **options)


def _fill(value, fields: dict, at: str):
    """Put axis values into a template: "{axis}" alone keeps the value's type, inside text it is formatted."""
    if isinstance(value, dict):
        return {k: _fill(v, fields, f"{at}.{k}") for k, v in value.items()}
    if isinstance(value, list):
        return [_fill(v, fields, at) for v in value]
    if not isinstance(value, str):
        return value
    whole = re.fullmatch(r"\{(\w+)\}", value)
    try:
        filled = fields[whole[1]] if whole else re.sub(r"\{(\w+)\}", lambda m: str(fields[m[1]]), value)
    except KeyError as error:
        raise ConfigError(
            f"{at}: no axis {error.args[0]!r} to fill {value!r}{closest(error.args[0], list(fields))}"
        ) from None
    if whole and isinstance(filled, str) and number_as_text(filled):
        raise ConfigError(f"{at}: {filled!r} is read as text by YAML; write it with a point, as 1.0e-4")
    return filled


def _check_parents(plan: Plan, files: dict) -> None:
    """Every parent and adapter exists with the checkpoint asked for, and no run descends from itself."""
    for run in plan.runs.values():
        at = f"{files[run.experiment]}: runs.{run.group}"
        for role, target, checkpoint in _references(run):
            if target not in plan.runs:
                wanted = target.rsplit("/", 1)[0].removeprefix(run.experiment + "/")
                names = [r.id.rsplit("/", 1)[0] for r in plan.runs.values() if r.seed == run.seed]
                known = [name.removeprefix(run.experiment + "/") for name in names]
                raise ConfigError(
                    f"{at}.{role}: {run.name} needs the run {wanted!r}, which does not exist{closest(wanted, known)}"
                )
            if problem := _refused(plan, run, role, plan.runs[target]):
                raise ConfigError(f"{at}.{role}: {problem}")
            saved = plan.runs[target].train or {}
            if checkpoint != FINAL and checkpoint not in saved.get("checkpoints", []):
                raise ConfigError(
                    f"{at}.{role}: {target} saves no checkpoint {checkpoint!r}; add it to its train.checkpoints"
                    f" (now {json.dumps(saved.get('checkpoints', []))})"
                )
    state: dict[str, int] = {}

    def visit(run_id: str, path: list[str]) -> None:
        if state.get(run_id) == 2:
            return
        if state.get(run_id) == 1:
            run = plan.runs[run_id]
            chain = " -> ".join(i.rsplit("/", 1)[0] for i in [*path[path.index(run_id) :], run_id])
            raise ConfigError(
                f"{files[run.experiment]}: runs.{run.group}.parent: a run cannot descend from itself: {chain}"
            )
        state[run_id] = 1
        for _, target, _ in _references(plan.runs[run_id]):
            visit(target, [*path, run_id])
        state[run_id] = 2

    for run_id in plan.runs:
        visit(run_id, [])


def _check_held_out(plan: Plan, files: dict) -> None:
    """No run is trained on the rows that measure its loss, as far as row numbers of one source tell."""
    for run in plan.runs.values():
        suites = plan.experiments[run.experiment]["suites"]
        losses = {name: suites[name] for name in run.evaluate if suites[name]["kind"] == "loss"}
        for data in (a.data for a in plan.lineage(run.id) if a.data and a.data["kind"] == "conversations"):
            last = data["skip"] + data["rows"] if data["rows"] else None
            for name, suite in losses.items():
                if suite["source"] == data["source"] and (last is None or last > suite["skip"]):
                    used = f"up to row {last}" if last else "without a limit (data.rows)"
                    raise ConfigError(
                        f"{files[run.experiment]}: suites.{name}.skip: {run.name} is trained on source "
                        f"{suite['source']!r} {used}, but the held-out rows begin after row {suite['skip']}"
                    )


def _refused(plan: Plan, run: Run, role: str, target: Run) -> str | None:
    """Why a run cannot use another as its parent or adapter, in one sentence; None if it can."""
    if role == "adapter":
        if target.method != "lora" or target.name == BASE:
            return f"{target.id} trains all weights, so it has no adapter to apply; name a run with train.method: lora"
        if plan.stands_on_adapters(target):
            return (
                f"the adapter file of {target.id} holds its parents' updates too (lineage: stacked); "
                "name a run that stands on the untrained model"
            )
    elif run.parent.is_part:
        if not plan.adds_adapter(run.parent):
            return (
                f"{target.id} is a whole model, of which no part can be left out: drop layers, modules and scale, "
                "or name a run with train.method: lora"
            )
        if plan.stands_on_adapters(target) and not plan.stands_on_adapters(run):
            return (
                f"part of {target.id}, whose lineage is stacked, cannot be merged: give {run.experiment} "
                "lineage: stacked too, and train.method: lora"
            )
    return None


def _references(run: Run) -> list[tuple[str, str, str]]:
    found = [("parent", run.parent.run, run.parent.checkpoint)] if run.parent else []
    return found + ([("adapter", run.adapter, FINAL)] if run.adapter else [])
