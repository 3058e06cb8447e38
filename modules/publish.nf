// Put a sample's results into outdir: complete under the sample's name, or not at all (io/publishing.py). What is there may have
// changed since the last run, so that this is never taken over; results that are there already are left alone.

include { answer } from './channels'

process PUBLISH {
    tag "${meta.id}"
    label 'publish'
    label 'process_low'
    cache false

    input:
    tuple val(meta), path(results, stageAs: 'results/*')
    path outdir, stageAs: 'outdir'
    val mode

    output:
    tuple val(meta), path('published.json'), emit: published

    script:
    """
    n4flow publish 'results/${meta.id}' outdir ${mode == 'link' ? '--link' : ''} --threads ${task.cpus} --json published.json
    """

    stub:
    """
    echo '{}' > published.json
    """
}

// Say on the terminal how a sample's files came to their place.
def tell_published(meta, numbers) {
    def said = answer(numbers).said
    if (said) { log.info("sample ${meta.id}: ${said}") }
}
