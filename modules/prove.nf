include { predicted } from './memory'
include { title } from './units'

// What voxels above each other in neighbouring planes prove: the evidence, and as much of the bias fields as it supports.
process PROVE {
    tag "${title(meta)}"
    label 'memory'
    label 'process_medium'
    ext memory_bytes: { predicted(volume, task) }

    input:
    tuple val(meta), val(volume),
        path(table, stageAs: 'sections/*'), path(shrunken, stageAs: 'shrunken/*'), path(masks),
        path(recipe, stageAs: 'recipe/*')
    val settings

    output:
    tuple val(meta), path('evidence.npz', arity: '1..*'), emit: evidence
    tuple val(meta), path('proven/*', arity: '1..*'), emit: proven

    script:
    """
    mkdir proven
    n4flow prove shrunken --masks masks.npz --sections ${table ?: volume.sections} ${recipe ? '--recipe recipe' : ''} \\
        ${settings} --out evidence.npz --recipe-out proven --json proven/prove.json --threads ${task.cpus}
    """

    stub:
    """
    mkdir proven && touch evidence.npz && echo '{"stage": "PROVE"}' > proven/prove.json
    """
}
