checkpoint phase_decision:
    input:
        unpack(of_analysis_phase(SEARCH.inputs)),
        code=code("recipe_phase"),
    output:
        decision="<recipes>/phases/{phase}.json",
        points="<recipes>/phases/{phase}.points.parquet",
        geometry="<recipes>/phases/{phase}.geometry.parquet",
        conduct="<recipes>/phases/{phase}.conduct.parquet",
        manifest="<recipes>/phases/{phase}.manifest.json",
    log:
        "<recipes>/phases/{phase}.log",
    benchmark:
        "<recipes>/phases/{phase}.benchmark.jsonl"
    conda:
        "../envs/analysis.yaml"
    resources:
        python="python",
        mem_mb=16000,
        runtime=120,
    params:
        spec=of_analysis_phase(as_spec(SEARCH.spec)),
        runs=of_analysis_phase(SEARCH.records),
    shell:
        "{resources.python} workflow/scripts/recipe_phase.py --phase {wildcards.phase}"
        " --runs @<(printf %s {params.runs:q}) --spec {params.spec:q} --out {output.decision}"
        " --points {output.points} --geometry {output.geometry} --conduct {output.conduct}"
        " --manifest {output.manifest} > {log} 2>&1"


rule layer_sweep:
    input:
        model=of_run(FILES.evaluated_files),
        banks=BANKS,
        questions=of(FILES.question_bank, "experiment"),
        code=code("extract_vectors"),
    output:
        table="<run>/vectors-sweep.safetensors",
        manifest="<run>/vectors-sweep.manifest.json",
    log:
        "<run>/vectors-sweep.log",
    benchmark:
        "<run>/vectors-sweep.benchmark.jsonl"
    conda:
        "../envs/train.yaml"
    resources:
        python="python",
        token_budget=CONFIG["resources"]["token_budget"],
        generation_batch=CONFIG["resources"]["generation_batch"],
        gpu=GPU,
        mem_mb=lambda wildcards, attempt: 48000 * attempt,
        runtime=lambda wildcards, attempt: 120 * attempt,
    params:
        spec=of_run(as_spec(SEARCH.sweep_spec)),
        model=of_run(FILES.evaluated_flags),
    shell:
        "GPUS={resources.gpu} {resources.python} workflow/scripts/extract_vectors.py --spec {params.spec:q} {params.model}"
        " --token-budget {resources.token_budget} --batch {resources.generation_batch}"
        " --out {output.table} --manifest {output.manifest} > {log} 2>&1"


rule recipe_verdict:
    input:
        decisions=phases_reached,
        points=beside_decisions("points.parquet"),
        conduct=beside_decisions("conduct.parquet"),
        cards=of_phases_reached(SEARCH.cards),
        norms=of_phases_reached(SEARCH.norms),
        sweeps=passing_sweeps,
        code=code("recipe_verdict"),
    output:
        pareto=report(
            "<recipes>/recipes.png",
            caption="../report/recipes.rst",
            category="Recipes",
            labels={"figure": "Geometry kept against task learnt"},
        ),
        steps=report(
            "<recipes>/steps.png",
            caption="../report/steps.rst",
            category="Recipes",
            labels={"figure": "Step dose response"},
        ),
        mixing=report(
            "<recipes>/mixing.png",
            caption="../report/mixing.rst",
            category="Recipes",
            labels={"figure": "Mixing curves"},
        ),
        pdf="<recipes>/recipes.pdf",
        points="<recipes>/points.parquet",
        contrasts="<recipes>/contrasts.parquet",
        layers="<recipes>/layers.parquet",
        text="<recipes>/summary.md",
        numbers="<recipes>/summary.json",
        manifest="<recipes>/summary.manifest.json",
    log:
        "<recipes>/summary.log",
    benchmark:
        "<recipes>/summary.benchmark.jsonl"
    conda:
        "../envs/analysis.yaml"
    resources:
        python="python",
        mem_mb=8000,
        runtime=60,
    params:
        spec=of_analysis(as_spec(SEARCH.closing_spec)),
        folder=subpath(output.text, parent=True),
    shell:
        "{resources.python} workflow/scripts/recipe_verdict.py --decisions {input.decisions} --cards {input.cards}"
        " --norms {input.norms} --sweeps {input.sweeps} --spec {params.spec:q} --folder {params.folder}"
        " --manifest {output.manifest} > {log} 2>&1"
