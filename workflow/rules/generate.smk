rule completions:
    input:
        unpack(of_run(FILES.evaluated_sources)),
        model=of_run(FILES.evaluated_files),
        banks=BANKS,
        questions=of_run(FILES.evaluated_questions),
        code=code("generate"),
    output:
        table="<run>/completions.parquet",
        measures="<run>/measures.parquet",
        manifest="<run>/completions.manifest.json",
    log:
        "<run>/completions.log",
    benchmark:
        "<run>/completions.benchmark.jsonl"
    conda:
        "../envs/vllm.yaml"
    resources:
        python="python",
        gpu=GPU if CONFIG["engine"]["name"] != "openai" else 0,
        engine_options=FILES.engine_options(),
        mem_mb=lambda wildcards, attempt: 48000 * attempt,
        runtime=lambda wildcards, attempt: 120 * attempt,
    params:
        spec=of_run(as_spec(PLAN.completions_spec)),
        model=of_run(FILES.evaluated_flags),
        sources=of_run(FILES.evaluated_source_flags),
    shell:
        "GPUS={resources.gpu} {resources.python} workflow/scripts/generate.py --run {wildcards.experiment}/{wildcards.name}"
        " --spec {params.spec:q} {params.model} {params.sources} --engine-options {resources.engine_options:q}"
        " --out {output.table} --measures {output.measures} --manifest {output.manifest} > {log} 2>&1"


rule pool:
    input:
        model=of_run(FILES.pool_files, "label", "suite"),
        banks=BANKS,
        questions=of_run(FILES.pool_questions, "label", "suite"),
        code=code("generate"),
    output:
        table="<run>/pool-{label}-{suite}.parquet",
        manifest="<run>/pool-{label}-{suite}.manifest.json",
    log:
        "<run>/pool-{label}-{suite}.log",
    benchmark:
        "<run>/pool-{label}-{suite}.benchmark.jsonl"
    conda:
        "../envs/vllm.yaml"
    resources:
        python="python",
        gpu=GPU if CONFIG["engine"]["name"] != "openai" else 0,
        engine_options=FILES.engine_options(),
        mem_mb=lambda wildcards, attempt: 48000 * attempt,
        runtime=lambda wildcards, attempt: 120 * attempt,
    params:
        spec=of_run(as_spec(FILES.pool_spec), "label", "suite"),
        model=of_run(FILES.pool_flags, "label", "suite"),
    shell:
        "GPUS={resources.gpu} {resources.python} workflow/scripts/generate.py --run {wildcards.experiment}/{wildcards.name}"
        " --spec {params.spec:q} {params.model} --engine-options {resources.engine_options:q}"
        " --out {output.table} --manifest {output.manifest} > {log} 2>&1"
