include { predicted } from './memory'
include { title } from './units'

// Put the slabs together by hard links, complete and check the store, write recipe, tables and report.
process FINISH {
    tag "${title(meta)}"
    label 'memory'
    label 'process_medium'
    ext memory_bytes: { predicted(volume, task) }

    input:
    tuple val(meta), val(volume),
        path(image, stageAs: 'image/*'), path(mask, stageAs: 'mask/*'), path(table, stageAs: 'sections/*'),
        path(shrunken, stageAs: 'shrunken/*'), path(masks), path(histograms, stageAs: 'histograms/*'),
        path(recipe, stageAs: 'recipe/*'), path(evidence), path(slabs, stageAs: 'slabs/*'), val(joint)
    val parameters

    output:
    tuple val(meta), path("published/${meta.id}"), emit: results
    tuple val(meta), path("published/${meta.id}/checksums.json"), emit: checksums

    script:
    """
    cat > parameters.json <<'END_OF_PARAMETERS'
    ${parameters}
    END_OF_PARAMETERS
    n4flow finish ${image ?: volume.address}${volume.pattern ?: ''} ${volume.options} ${joint} --sample '${meta.id}' ${volume.state ? "--state ${volume.state}" : ''} --sections ${table ?: volume.sections} \\
        --parameters parameters.json --before shrunken --masks masks.npz --slabs slabs --numbers histograms \\
        ${recipe ? '--recipe recipe' : ''} ${evidence ? '--evidence evidence.npz' : ''} ${mask ? "--mask ${mask}${volume.mask_pattern ?: ''}" : ''} --out 'published/${meta.id}' --threads ${task.cpus}
    """

    stub:
    """
    mkdir -p 'published/${meta.id}' && touch 'published/${meta.id}/report.html' 'published/${meta.id}/summary.json' 'published/${meta.id}/checksums.json'
    """
}
