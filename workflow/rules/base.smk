rule base_model:
    input:
        words=files.small_world_words(),
        recipes=files.RECIPES,
        banks=BANKS,
        questions=files.HELD_OUT,
        code=code("pretrain_base"),
    output:
        files=expand("<root>/base_model/{file}", file=files.BASE_FILES),
        training_log="<root>/base_model/training_log.jsonl",
        manifest="<root>/base_model/base.manifest.json",
    log:
        "<root>/base_model/base_model.log",
    benchmark:
        "<root>/base_model/base_model.benchmark.jsonl"
    conda:
        "../envs/train.yaml"
    threads: 2
    resources:
        python="python",
        gpu=GPU,
        mem_mb=8000,
        runtime=60,
    params:
        folder=subpath(output.manifest, parent=True),
        recipe=CONFIG["model"]["recipe"],
    shell:
        "GPUS={resources.gpu} {resources.python} workflow/scripts/pretrain_base.py --recipe {params.recipe}"
        " --workers {threads} --out {params.folder} > {log} 2>&1"
