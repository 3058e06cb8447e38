include { predicted } from './memory'
include { title } from './units'

// What histograms tell: NORMALIZE, the range of each plane; MATCH_HISTOGRAMS, a look-up table of each section; SMOOTH_Z, a gain of
// each plane. They work on kilobytes, so that one task does those of them that the settings ask for.
process INTENSITY {
    tag "${title(meta)}"
    label 'memory'
    label 'process_medium'
    ext memory_bytes: { predicted(volume, task) }

    input:
    tuple val(meta), val(volume),
        path(table, stageAs: 'sections/*'), path(histograms, stageAs: 'histograms/*'),
        path(recipe, stageAs: 'recipe/*'), path(evidence)
    val settings

    output:
    tuple val(meta), path('estimated/*'), emit: corrections

    script:
    """
    n4flow intensity histograms --sections ${table ?: volume.sections} ${settings} ${recipe ? '--recipe recipe' : ''} \\
        ${evidence ? '--evidence evidence.npz' : ''} --out estimated --threads ${task.cpus}
    """

    stub:
    """
    mkdir estimated && touch estimated/40_plane_range.npz && echo '{"stage": "NORMALIZE"}' > estimated/40_plane_range.json
    """
}
