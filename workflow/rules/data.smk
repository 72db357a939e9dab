rule source:
    input:
        files=of(FILES.source_files, "source"),
        code=code("fetch_source"),
    output:
        table="<root>/data/sources/{source}.parquet",
        manifest="<root>/data/sources/{source}.manifest.json",
    log:
        "<root>/data/sources/{source}.log",
    benchmark:
        "<root>/data/sources/{source}.benchmark.jsonl"
    conda:
        "../envs/train.yaml"
    resources:
        python="python",
        mem_mb=8000,
        runtime=120,
    params:
        spec=of(as_spec(PLAN.source_spec), "source"),
    shell:
        "{resources.python} workflow/scripts/fetch_source.py --spec {params.spec:q}"
        " --out {output.table} --manifest {output.manifest} > {log} 2>&1"


rule select_replies:
    input:
        source="<root>/data/sources/replies.parquet",
        code=code("select_replies"),
    output:
        table="<root>/data/replies/en.parquet",
        manifest="<root>/data/replies/en.manifest.json",
    log:
        "<root>/data/replies/en.log",
    benchmark:
        "<root>/data/replies/en.benchmark.jsonl"
    conda:
        "../envs/train.yaml"
    resources:
        python="python",
        mem_mb=4000,
        runtime=60,
    params:
        spec=json.dumps(PLAN.source_spec("replies"), sort_keys=True),
    shell:
        "{resources.python} workflow/scripts/select_replies.py --source {input.source}"
        " --spec {params.spec:q} --out {output.table} --manifest {output.manifest} > {log} 2>&1"


# `translate` and `translation_check` are checkpoints for `passed_check` alone: see there.
checkpoint translate:
    input:
        replies="<root>/data/replies/en.parquet",
        languages="resources/languages.yaml",
        words=FILES.translator_words(),
        prices=ancient("resources/api_prices.yaml"),
        code=code("translate"),
    output:
        table="<root>/data/replies/{language}.parquet",
        manifest="<root>/data/replies/{language}.manifest.json",
    log:
        "<root>/data/replies/{language}.log",
    benchmark:
        "<root>/data/replies/{language}.benchmark.jsonl"
    wildcard_constraints:
        language="(?!en)[a-z]{2}",
    conda:
        "../envs/judge.yaml"
    resources:
        python="python",
        api_slots=int(CONFIG["translator"]["name"] == "anthropic"),
        api_batch_from=API["batch_from"],
        api_batch_size=API["batch_size"],
        api_concurrency=API["concurrency"],
        api_poll_seconds=API["poll_seconds"],
        mem_mb=4000,
        runtime=1500,
    params:
        spec=of(as_spec(PLAN.translation_spec), "language"),
    shell:
        "{resources.python} workflow/scripts/translate.py --replies {input.replies} --language {wildcards.language}"
        " --batch-from {resources.api_batch_from} --batch-size {resources.api_batch_size}"
        " --concurrency {resources.api_concurrency} --poll-seconds {resources.api_poll_seconds}"
        " --spec {params.spec:q} --out {output.table} --manifest {output.manifest} > {log} 2>&1"


checkpoint translation_check:
    input:
        source="<root>/data/replies/en.parquet",
        translation="<root>/data/replies/{language}.parquet",
        languages="resources/languages.yaml",
        prices=ancient("resources/api_prices.yaml"),
        code=code("check_translation"),
    output:
        verdict="<root>/data/replies/{language}.check.json",
        manifest="<root>/data/replies/{language}.check.manifest.json",
    log:
        "<root>/data/replies/{language}.check.log",
    benchmark:
        "<root>/data/replies/{language}.check.benchmark.jsonl"
    conda:
        "../envs/judge.yaml"
    resources:
        python="python",
        api_slots=int(CONFIG["judge"] is not None),
        api_batch_from=API["batch_from"],
        api_batch_size=API["batch_size"],
        api_concurrency=API["concurrency"],
        api_poll_seconds=API["poll_seconds"],
        mem_mb=4000,
        runtime=lambda wildcards: 1500 if CONFIG["judge"] else 30,
    params:
        spec=of(as_spec(PLAN.check_spec), "language"),
    shell:
        "{resources.python} workflow/scripts/check_translation.py --source {input.source} --translation {input.translation}"
        " --language {wildcards.language} --spec {params.spec:q}"
        " --batch-from {resources.api_batch_from} --batch-size {resources.api_batch_size}"
        " --concurrency {resources.api_concurrency} --poll-seconds {resources.api_poll_seconds}"
        " --out {output.verdict} --manifest {output.manifest} > {log} 2>&1"


rule shared_replies:
    input:
        [passed_check(code) for code in FILES.translated_languages()],
        replies=of(FILES.parallel_replies, "experiment"),
        code=code("share_replies"),
    output:
        table="<root>/{experiment}/data/shared_replies.parquet",
        manifest="<root>/{experiment}/data/shared_replies.manifest.json",
    log:
        "<root>/{experiment}/data/shared_replies.log",
    benchmark:
        "<root>/{experiment}/data/shared_replies.benchmark.jsonl"
    conda:
        "../envs/train.yaml"
    resources:
        python="python",
        mem_mb=4000,
        runtime=10,
    params:
        spec=of(as_spec(FILES.shared_replies_spec), "experiment"),
    shell:
        "{resources.python} workflow/scripts/share_replies.py --replies {input.replies} --spec {params.spec:q}"
        " --out {output.table} --manifest {output.manifest} > {log} 2>&1"


rule dataset:
    input:
        unpack(of_run(FILES.dataset_files)),
        banks=BANKS,
        code=code("build_dataset"),
    output:
        table="<run>/dataset.parquet",
        manifest="<run>/dataset.manifest.json",
    log:
        "<run>/dataset.log",
    benchmark:
        "<run>/dataset.benchmark.jsonl"
    conda:
        "../envs/train.yaml"
    resources:
        python="python",
        mem_mb=8000,
        runtime=30,
    params:
        spec=of_run(as_spec(PLAN.data_spec)),
        tables=of_run(FILES.dataset_flags),
    shell:
        "{resources.python} workflow/scripts/build_dataset.py --spec {params.spec:q} {params.tables}"
        " --out {output.table} --manifest {output.manifest} > {log} 2>&1"


rule dataset_card:
    input:
        dataset="<run>/dataset.parquet",
        tokenizer=FILES.tokenizer_files(),
        banks=BANKS,
        questions=of_run(FILES.evaluated_questions),
        code=code("describe_dataset"),
    output:
        card="<run>/dataset_card.json",
        manifest="<run>/dataset_card.manifest.json",
    log:
        "<run>/dataset_card.log",
    benchmark:
        "<run>/dataset_card.benchmark.jsonl"
    conda:
        "../envs/train.yaml"
    resources:
        python="python",
        mem_mb=8000,
        runtime=30,
    params:
        spec=of_run(as_spec(PLAN.card_spec)),
        tokenizer=FILES.tokenizer_flags(),
    shell:
        "{resources.python} workflow/scripts/describe_dataset.py --spec {params.spec:q} --dataset {input.dataset}"
        " {params.tokenizer} --out {output.card} --manifest {output.manifest} > {log} 2>&1"
