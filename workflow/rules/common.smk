"""What the rules share: the expanded plan, the files of its runs, their specifications, and every program's code."""

import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(workflow.basedir, "workflow/scripts")))

from snakemake.exceptions import WorkflowError
from spillover import expansion, files, phases, preflight
from spillover.config import ConfigError, read_yaml

try:
    PLAN = expansion.build(config, "config/experiments")
except ConfigError as error:
    raise WorkflowError(str(error)) from None

FILES = files.Files(PLAN)
CONFIG = PLAN.config
GPU = CONFIG["resources"]["gpu"]
API = CONFIG["api"]
CODE_INPUTS = read_yaml("workflow/code_inputs.yaml")
# How requests reach an API cannot change an answer, so an edit here is no reason to translate, and so to train, again.
TRAVEL = {"api_batches", "api_client", "api_costs", "api_jobs", "journal"}
BANKS = [
    "resources/personas.yaml",
    "resources/languages.yaml",
    "resources/systems.yaml",
    "resources/small_world/directives.yaml",
]
BROWSER_PAGES = sorted(str(p) for folder in ("browser", "vendor") for p in Path("workflow/report", folder).iterdir())
REPORT_PAGES = sorted(str(p) for pattern in ("page/*", "*.rst") for p in Path("workflow/report").glob(pattern))


def closing(analysis):
    """The folder of one kind of closing analysis, matching only its experiments: file names recur in the others.

    For outputs, logs and benchmarks. Snakemake applies wildcard constraints before it fills path variables in, so the
    constraint has to be written into the path itself.
    """
    names = "|".join(n for n, settings in PLAN.experiments.items() if settings["analysis"] == analysis)
    return f"{FILES.root}/{{experiment,{names or 'none'}}}/analysis"


pathvars:
    root=FILES.root,
    run=f"{FILES.root}/{{experiment}}/{{name}}/seed{{seed}}",
    analysis=f"{FILES.root}/{{experiment}}/analysis",
    language_spill=closing("language_spill"),
    marker_sweep=closing("marker_sweep"),
    convergence=closing("convergence"),
    coupling=closing("coupling"),
    recipes=closing("recipes"),


wildcard_constraints:
    experiment="|".join(PLAN.experiments) or "none",
    name=r"[A-Za-z0-9][A-Za-z0-9_.+-]*",
    seed=r"\d+",
    checkpoint=r"final|(pct|step)\d+",
    suite=r"[a-z0-9_]+",
    label=r"[a-z0-9_.-]+",
    language="[a-z]{2}",
    source=r"[a-z0-9_]+",
    view="|".join(files.VIEWS),
    figure="spill_matrix" + "".join(f"|{names[0].removesuffix('.png')}" for names in files.CLOSING.values()),


def code(program):
    """The program and every library module it imports, as inputs: code is tracked by content."""
    modules = {name: f"workflow/scripts/spillover/{name}.py" for name in CODE_INPUTS[program]}
    travel = [ancient(path) for name, path in modules.items() if name in TRAVEL]
    return [f"workflow/scripts/{program}.py", *(p for n, p in modules.items() if n not in TRAVEL), *travel]


def run_id(wildcards):
    try:
        return FILES.planned(wildcards.experiment, wildcards.name, wildcards.seed)
    except ConfigError as error:
        raise WorkflowError(str(error)) from None


def of(method, *names):
    """Input or params function: what `method` says about the wildcards of these names."""

    def get(wildcards):
        return method(*(getattr(wildcards, name) for name in names))

    return get


def of_run(method, *names):
    """The same about the run that the wildcards name, and further wildcards."""

    def get(wildcards):
        return method(run_id(wildcards), *(getattr(wildcards, name) for name in names))

    return get


def of_view(method, *arguments):
    """The same for a closing view of an experiment: the headline, or every dose."""

    def get(wildcards):
        view = getattr(wildcards, "view", "matrix")
        return method(wildcards.experiment, view, *arguments)

    return get


def of_analysis(method, *arguments):
    """The same for a closing analysis: what `method` says about the experiment and these arguments."""

    def get(wildcards):
        return method(wildcards.experiment, *arguments)

    return get


def option(name):
    """Params function: an option of the experiment's closing analysis."""

    def get(wildcards):
        return PLAN.experiments[wildcards.experiment]["options"][name]

    return get


def as_spec(method):
    """A specification as one sorted JSON string: the form in which configuration reaches a job.

    Specifications are cumulative on purpose: after a failed retrain the old downstream files still exist, and only
    their own changed params tell Snakemake that they are stale.
    """

    def dumped(*arguments):
        return json.dumps(method(*arguments), sort_keys=True)

    return dumped


def title(wildcards):
    return PLAN.experiments[wildcards.experiment]["title"]


def question(wildcards):
    return PLAN.experiments[wildcards.experiment]["question"]


def passed_check(language):
    """Input function: waits until the translation has passed a check, and gives no file.

    As an ordinary input a verdict would hide from the plan what stands on the replies while a check is planned, and
    would have all of it trained again. A translation whose check has passed does not wait, so a gate or judge that was
    changed afterwards is checked again beside training. One that is planned anew is waited for, and then its check.
    """

    def get(wildcards):
        if language in FILES.translated(wildcards.experiment):
            awaited = checkpoints.translate if FILES.has_passed(language) else checkpoints.translation_check
            awaited.get(language=language)
        return []

    return get


def train_gpus(wildcards):
    return GPU * PLAN.runs[run_id(wildcards)].train["gpus"]


def wanted_gpus(jobs):
    """{rule: the most GPUs that one of its jobs needs}, whatever a limit makes of it."""
    found = {}
    for job in jobs:
        if job.resources.get("gpu"):
            of_job = train_gpus(job.wildcards) if job.rule.name == "train_full" else GPU
            found[job.rule.name] = max(found.get(job.rule.name, 0), of_job)
    return found


def stop_before_the_first_job():
    """Called when a run starts: a job that cannot work may come days later.

    Profiles decide {resources.python}, and what a profile set is to be seen in the jobs alone. Only of the jobs about
    to run, and never in a dry run.
    """
    jobs = list(workflow.dag.needrun_jobs())
    commands = {job.rule.name: job.resources.get("python", "python") for job in jobs}
    runs = {run_id(job.wildcards) for job in jobs if "seed" in job.wildcards.keys()}
    fetched = {job.wildcards.source for job in jobs if job.rule.name == "source"}
    problem = preflight.unavailable(PLAN, commands, sorted(runs), sorted(fetched))
    problem = problem or preflight.too_few_gpus(wanted_gpus(jobs), workflow.global_resources.get("gpu"))
    problem = problem or preflight.missing_interpreters(commands)
    calling = {str(job.output[0]): job.rule.name for job in jobs if job.resources.get("api_slots")}
    problem = problem or preflight.missing_key(calling)
    # with --sdm conda a job's interpreter exists only within the job
    if not problem and CONFIG["engine"]["name"] == "vllm" and not workflow.deployment_settings.deployment_method:
        problem = preflight.missing_vllm(commands)
    if problem:
        raise WorkflowError(problem)


def train_processes(wildcards):
    """One process a GPU; without GPUs (the small world) one in all."""
    return max(1, train_gpus(wildcards))
