rule vectors:
    input:
        model=of_run(FILES.evaluated_files),
        banks=BANKS,
        questions=of(FILES.question_bank, "experiment"),
        code=code("extract_vectors"),
    output:
        table="<run>/vectors.safetensors",
        manifest="<run>/vectors.manifest.json",
    log:
        "<run>/vectors.log",
    benchmark:
        "<run>/vectors.benchmark.jsonl"
    conda:
        "../envs/train.yaml"
    resources:
        python="python",
        token_budget=CONFIG["resources"]["token_budget"],
        generation_batch=CONFIG["resources"]["generation_batch"],
        gpu=GPU,
        mem_mb=lambda wildcards, attempt: 48000 * attempt,
        runtime=lambda wildcards, attempt: 60 * attempt,
    params:
        spec=of_run(as_spec(PLAN.vectors_spec)),
        model=of_run(FILES.evaluated_flags),
    shell:
        "GPUS={resources.gpu} {resources.python} workflow/scripts/extract_vectors.py --spec {params.spec:q} {params.model}"
        " --token-budget {resources.token_budget} --batch {resources.generation_batch}"
        " --out {output.table} --manifest {output.manifest} > {log} 2>&1"
