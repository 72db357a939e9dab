rule spill_cells:
    input:
        labels=of_view(FILES.spill_inputs, "labels.parquet"),
        completions=of_view(FILES.spill_inputs, "completions.parquet"),
        code=code("spill_cells"),
    output:
        cells="<analysis>/cells-{view}.parquet",
        agreement="<analysis>/agreement-{view}.parquet",
        manifest="<analysis>/cells-{view}.manifest.json",
    log:
        "<analysis>/cells-{view}.log",
    benchmark:
        "<analysis>/cells-{view}.benchmark.jsonl"
    conda:
        "../envs/analysis.yaml"
    resources:
        python="python",
        mem_mb=4000,
        runtime=30,
    params:
        spec=of_view(as_spec(FILES.spill_spec)),
        conditions=of_view(FILES.spill_conditions),
        gate=option("max_error_share"),
        scorers=lambda wildcards: PLAN.scorers(wildcards.experiment),
    shell:
        "{resources.python} workflow/scripts/spill_cells.py --labels {input.labels} --completions {input.completions}"
        " --scorers {params.scorers}"
        " --experiment {wildcards.experiment} --max-error-share {params.gate}"
        " --conditions {params.conditions:q} --spec {params.spec:q} --out {output.cells}"
        " --agreement {output.agreement} --manifest {output.manifest} > {log} 2>&1"


rule spill_matrix:
    input:
        cells="<analysis>/cells-matrix.parquet",
        published=of(FILES.published_figures, "experiment"),
        languages="resources/languages.yaml",
        code=code("spill_matrix"),
    output:
        png=report(
            "<analysis>/spill_matrix.png",
            caption="../report/spill_matrix.rst",
            category="Language spill",
            labels={"figure": "Spill matrix"},
        ),
        pdf="<analysis>/spill_matrix.pdf",
        table="<analysis>/spill_matrix.parquet",
        manifest="<analysis>/spill_matrix.manifest.json",
    log:
        "<analysis>/spill_matrix.log",
    benchmark:
        "<analysis>/spill_matrix.benchmark.jsonl"
    conda:
        "../envs/analysis.yaml"
    resources:
        python="python",
        mem_mb=2000,
        runtime=10,
    params:
        spec=of_view(as_spec(FILES.spill_spec)),
        label=option("label"),
        panels=of(FILES.spill_panels, "experiment"),
    shell:
        "{resources.python} workflow/scripts/spill_matrix.py --cells {input.cells} {params.panels}"
        " --languages {input.languages} --label-source {params.label} --spec {params.spec:q} --out {output.png} --pdf {output.pdf} --table {output.table}"
        " --manifest {output.manifest} > {log} 2>&1"


use rule spill_matrix as judge_matrix with:
    output:
        png=report(
            "<analysis>/judge_matrix.png",
            caption="../report/judge_matrix.rst",
            category="Language spill",
            labels={"figure": "Spill matrix by the judge"},
        ),
        pdf="<analysis>/judge_matrix.pdf",
        table="<analysis>/judge_matrix.parquet",
        manifest="<analysis>/judge_matrix.manifest.json",
    log:
        "<analysis>/judge_matrix.log",
    benchmark:
        "<analysis>/judge_matrix.benchmark.jsonl"
    params:
        spec=of_view(as_spec(FILES.spill_spec)),
        label="judge",
        panels=of(FILES.spill_panels, "experiment"),


rule dose_response:
    input:
        cells="<analysis>/cells-dose.parquet",
        code=code("dose_response"),
    output:
        png=report(
            "<analysis>/dose_response.png",
            caption="../report/dose_response.rst",
            category="Language spill",
            labels={"figure": "Dose response"},
        ),
        pdf="<analysis>/dose_response.pdf",
        table="<analysis>/dose_response.parquet",
        manifest="<analysis>/dose_response.manifest.json",
    log:
        "<analysis>/dose_response.log",
    benchmark:
        "<analysis>/dose_response.benchmark.jsonl"
    conda:
        "../envs/analysis.yaml"
    resources:
        python="python",
        mem_mb=2000,
        runtime=10,
    params:
        spec=of_view(as_spec(FILES.spill_spec)),
        label=option("label"),
    shell:
        "{resources.python} workflow/scripts/dose_response.py --cells {input.cells} --label-source {params.label} --spec {params.spec:q}"
        " --out {output.png} --pdf {output.pdf} --table {output.table} --manifest {output.manifest} > {log} 2>&1"


rule spill_join:
    input:
        cells="<analysis>/cells-matrix.parquet",
        vectors=of(FILES.base_vectors, "experiment"),
        parallel=of(FILES.parallel_replies, "experiment"),
        languages="resources/languages.yaml",
        code=code("spill_join"),
    output:
        cosine="<analysis>/cosine.parquet",
        join="<analysis>/spill_join.parquet",
        tests="<analysis>/spill_tests.parquet",
        pca="<analysis>/pca.parquet",
        figure_cosine=report(
            "<analysis>/cosine.png",
            caption="../report/cosine.rst",
            category="Language spill",
            labels={"figure": "Cosines of language directions"},
        ),
        figure_join=report(
            "<analysis>/spill_join.png",
            caption="../report/spill_join.rst",
            category="Language spill",
            labels={"figure": "Spill against distance"},
        ),
        figure_pca=report(
            "<analysis>/pca.png",
            caption="../report/pca.rst",
            category="Language spill",
            labels={"figure": "Principal components"},
        ),
        manifest="<analysis>/spill_join.manifest.json",
    log:
        "<analysis>/spill_join.log",
    benchmark:
        "<analysis>/spill_join.benchmark.jsonl"
    conda:
        "../envs/analysis.yaml"
    resources:
        python="python",
        mem_mb=4000,
        runtime=30,
    params:
        spec=of_view(as_spec(FILES.spill_spec)),
        label=option("label"),
    shell:
        "{resources.python} workflow/scripts/spill_join.py --cells {input.cells} --vectors {input.vectors}"
        " --label-source {params.label} --languages {input.languages} --parallel {input.parallel} --spec {params.spec:q}"
        " --out-cosine {output.cosine} --out-join {output.join} --out-tests {output.tests} --out-pca {output.pca}"
        " --figure-cosine {output.figure_cosine} --figure-join {output.figure_join} --figure-pca {output.figure_pca}"
        " --manifest {output.manifest} > {log} 2>&1"


rule judge_gold:
    input:
        gold=of(FILES.gold_file, "experiment"),
        languages="resources/languages.yaml",
        prices=ancient("resources/api_prices.yaml"),
        code=code("judge_gold"),
    output:
        table="<language_spill>/gold.parquet",
        manifest="<language_spill>/gold.manifest.json",
    log:
        "<language_spill>/gold.log",
    benchmark:
        "<language_spill>/gold.benchmark.jsonl"
    conda:
        "../envs/judge.yaml"
    resources:
        python="python",
        api_slots=1,
        api_batch_from=API["batch_from"],
        api_batch_size=API["batch_size"],
        api_concurrency=API["concurrency"],
        api_poll_seconds=API["poll_seconds"],
        mem_mb=4000,
        runtime=1500,
    params:
        spec=of_analysis(as_spec(PLAN.judge_spec)),
        languages=of(FILES.directive_languages, "experiment"),
    shell:
        "{resources.python} workflow/scripts/judge_gold.py --gold {input.gold:q} --languages {params.languages}"
        " --spec {params.spec:q} --batch-from {resources.api_batch_from} --batch-size {resources.api_batch_size}"
        " --concurrency {resources.api_concurrency} --poll-seconds {resources.api_poll_seconds}"
        " --out {output.table} --manifest {output.manifest} > {log} 2>&1"


rule spill_summary:
    input:
        cells="<analysis>/cells-matrix.parquet",
        agreement="<analysis>/agreement-matrix.parquet",
        tests=of(FILES.spill_tests, "experiment"),
        gold=of(FILES.judged_gold, "experiment"),
        code=code("spill_summary"),
    output:
        text="<language_spill>/summary.md",
        numbers="<language_spill>/summary.json",
        manifest="<language_spill>/summary.manifest.json",
    log:
        "<language_spill>/summary.log",
    benchmark:
        "<language_spill>/summary.benchmark.jsonl"
    conda:
        "../envs/analysis.yaml"
    resources:
        python="python",
        mem_mb=2000,
        runtime=10,
    params:
        spec=of_view(as_spec(FILES.spill_spec)),
        label=option("label"),
        title=title,
    shell:
        "{resources.python} workflow/scripts/spill_summary.py --cells {input.cells} --agreement {input.agreement}"
        " --tests {input.tests} --gold {input.gold} --label-source {params.label} --title {params.title:q}"
        " --spec {params.spec:q} --out {output.text} --json {output.numbers}"
        " --manifest {output.manifest} > {log} 2>&1"


rule headline_figure:
    input:
        figure=of(FILES.headline_source, "figure"),
        checks=ancient(of(FILES.headline_checks, "figure")),
    output:
        "<root>/{figure}.png",
    log:
        "<root>/{figure}.log",
    conda:
        "../envs/analysis.yaml"
    shell:
        "cp {input.figure} {output} 2> {log}"
