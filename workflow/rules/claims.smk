rule alarms:
    input:
        completions=of_phases_reached(SEARCH.compared_files, "completions.parquet"),
        labels=of_phases_reached(SEARCH.compared_files, "labels.parquet"),
        measures=of_phases_reached(SEARCH.compared_files, "measures.parquet"),
        points=points_reached,
        code=code("find_alarms"),
    output:
        found="<analysis>/alarms.json",
        manifest="<analysis>/alarms.manifest.json",
    log:
        "<analysis>/alarms.log",
    benchmark:
        "<analysis>/alarms.benchmark.jsonl"
    conda:
        "../envs/analysis.yaml"
    resources:
        python="python",
        mem_mb=8000,
        runtime=30,
    params:
        spec=of_phases_reached(as_spec(SEARCH.compared_spec)),
        runs=of_phases_reached(SEARCH.compared_records),
        search=search_flags,
    shell:
        "{resources.python} workflow/scripts/find_alarms.py --completions {input.completions} --labels {input.labels}"
        " {params.search} --runs @<(printf %s {params.runs:q}) --spec {params.spec:q} --out {output.found}"
        " --manifest {output.manifest} > {log} 2>&1"


rule claims:
    input:
        summaries=FILES.summaries(),
        alarms=FILES.alarms(),
        declared="resources/claims.yaml",
        code=code("judge_claims"),
    output:
        table="<root>/claims.parquet",
        text="<root>/claims.md",
        manifest="<root>/claims.manifest.json",
    log:
        "<root>/claims.log",
    benchmark:
        "<root>/claims.benchmark.jsonl"
    conda:
        "../envs/analysis.yaml"
    resources:
        python="python",
        mem_mb=2000,
        runtime=10,
    params:
        kinds=json.dumps({name: settings["analysis"] for name, settings in PLAN.experiments.items()}, sort_keys=True),
    shell:
        "{resources.python} workflow/scripts/judge_claims.py --declared {input.declared} --summaries {input.summaries}"
        " --alarms {input.alarms} --kinds {params.kinds:q} --out {output.table} --text {output.text} --manifest {output.manifest} > {log} 2>&1"
