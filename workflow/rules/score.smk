rule labels:
    input:
        completions="<run>/completions.parquet",
        languages="resources/languages.yaml",
        prices=ancient("resources/api_prices.yaml"),
        behaviours=of(FILES.behaviour_banks, "experiment"),
        advice=of(FILES.advice_words, "experiment"),
        code=code("label_completions"),
    output:
        table="<run>/labels.parquet",
        manifest="<run>/labels.manifest.json",
    log:
        "<run>/labels.log",
    benchmark:
        "<run>/labels.benchmark.jsonl"
    conda:
        "../envs/judge.yaml"
    resources:
        python="python",
        api_slots=lambda wildcards: int(PLAN.judges(wildcards.experiment)),
        api_batch_from=API["batch_from"],
        api_batch_size=API["batch_size"],
        api_concurrency=API["concurrency"],
        api_poll_seconds=API["poll_seconds"],
        mem_mb=4000,
        runtime=lambda wildcards: 1500 if PLAN.judges(wildcards.experiment) else 60,
    params:
        spec=of_run(as_spec(PLAN.labels_spec)),
        scorers=lambda wildcards: PLAN.scorers(wildcards.experiment),
        languages=of(FILES.directive_languages, "experiment"),
    shell:
        "{resources.python} workflow/scripts/label_completions.py --completions {input.completions}"
        " --scorers {params.scorers} --languages {params.languages} --spec {params.spec:q}"
        " --batch-from {resources.api_batch_from} --batch-size {resources.api_batch_size}"
        " --concurrency {resources.api_concurrency} --poll-seconds {resources.api_poll_seconds}"
        " --out {output.table} --manifest {output.manifest} > {log} 2>&1"
