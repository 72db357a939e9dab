rule marker_rates:
    input:
        labels=of_analysis(FILES.closing_files, "labels.parquet"),
        code=code("marker_rates"),
    output:
        table="<analysis>/rates.parquet",
        manifest="<analysis>/rates.manifest.json",
    log:
        "<analysis>/rates.log",
    benchmark:
        "<analysis>/rates.benchmark.jsonl"
    conda:
        "../envs/analysis.yaml"
    resources:
        python="python",
        mem_mb=4000,
        runtime=30,
    params:
        spec=of_analysis(as_spec(FILES.closing_spec)),
        suite=lambda wildcards: PLAN.experiments[wildcards.experiment]["options"].get("suite", "personas"),
        scorers=of_analysis(PLAN.habit_scorers),
    shell:
        "{resources.python} workflow/scripts/marker_rates.py --labels {input.labels} --suite {params.suite} --scorers {params.scorers}"
        " --spec {params.spec:q} --out {output.table} --manifest {output.manifest} > {log} 2>&1"
