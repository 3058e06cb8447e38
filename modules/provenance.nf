// Settings, versions, command line and digests of the run, tied together by a Workflow Run RO-Crate.
process PROVENANCE {
    label 'small'
    label 'process_single'

    input:
    path stated, stageAs: 'samples/stated*/*'  // checksums and summary of each sample
    val run
    val parameters
    val versions
    path workflow, stageAs: 'main.nf'

    output:
    path 'published/ro-crate-metadata.json', emit: crate
    path 'published/pipeline_info/*', emit: info
    path 'published/index.html', emit: index

    script:
    """
    cat > run.json <<'END_OF_RUN'
    ${run}
    END_OF_RUN
    cat > parameters.json <<'END_OF_PARAMETERS'
    ${parameters}
    END_OF_PARAMETERS
    cat > versions.json <<'END_OF_VERSIONS'
    ${versions}
    END_OF_VERSIONS
    n4flow provenance samples/*/*.json --run run.json --parameters parameters.json --versions versions.json \\
        --workflow main.nf --out published
    """

    stub:
    """
    mkdir -p published/pipeline_info && touch published/ro-crate-metadata.json published/index.html published/pipeline_info/run.json
    """
}
