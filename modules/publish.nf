// Put a sample's results into outdir: complete under the sample's name, or not at all (io/publishing.py). What is there may have
// changed since the last run, so that this is never taken over; results that are there already are left alone.

include { answer } from './channels'

process PUBLISH {
    tag "${meta.id}"
    label 'publish'
    cache false

    input:
    tuple val(meta), path(results, stageAs: 'results/*')
    path outdir, stageAs: 'outdir'
    val mode

    output:
    tuple val(meta), path('published.json'), emit: published

    script:
    """
    n4flow-publish 'results/${meta.id}' outdir ${mode == 'link' ? '--link' : ''} --threads ${task.cpus} --json published.json
    """

    stub:
    """
    echo '{}' > published.json
    """
}

// Say on the terminal how a sample was published, and what the verdict on it is; a stub run has neither.
def tell_published(meta, results, numbers) {
    def said = answer(numbers).said
    if (said) { log.info("sample ${meta.id}: ${said}") }
    def metrics = file("${results}/metrics.json")
    def verdict = metrics.exists() ? answer(metrics).verdict : null
    if (verdict?.status == 'look') { log.warn("sample ${meta.id}: look, ${verdict.sentence}") }
    else if (verdict) { log.info("sample ${meta.id}: ${verdict.status}, ${verdict.sentence}") }
}
