include { predicted } from './memory'
include { title } from './units'

// All sections together, from the shrunken volume: what neighbouring planes prove is taken off, anatomy stays.
process HARMONIZE {
    tag "${title(meta)}"
    label 'memory'
    label 'process_medium'
    ext memory_bytes: { predicted(volume, task) }

    input:
    tuple val(meta), val(volume),
        path(table, stageAs: 'sections/*'), path(shrunken, stageAs: 'shrunken/*'), path(masks),
        path(recipe, stageAs: 'recipe/*'), path(flat, stageAs: 'flat_field/*')
    val settings

    output:
    tuple val(meta), path('35_harmonization.*'), emit: correction

    script:
    """
    n4flow harmonize shrunken --masks masks.npz --sections ${table ?: volume.sections} ${recipe ? '--recipe recipe' : ''} \\
        ${settings} ${flat ? "--flat-field ${flat}" : ''} --out 35_harmonization.npz --json 35_harmonization.json --threads ${task.cpus}
    """

    stub:
    """
    touch 35_harmonization.npz && echo '{"stage": "HARMONIZE"}' > 35_harmonization.json
    """
}
