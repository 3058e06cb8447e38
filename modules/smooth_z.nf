include { predicted } from './memory'

// Gain of each plane that smooths the tissue profile along Z.
process SMOOTH_Z {
    tag "${meta.id}"
    label 'memory'
    ext memory_bytes: { predicted(volume, task.cpus) }

    input:
    tuple val(meta), val(volume),
        path(table, stageAs: 'sections/*'), path(histograms, stageAs: 'histograms/*'),
        path(recipe, stageAs: 'recipe/*'), path(evidence)
    val settings

    output:
    tuple val(meta), path('60_plane_gain.*'), emit: correction

    script:
    """
    n4flow smooth-z histograms --sections ${table ?: volume.sections} ${settings} \\
        ${recipe ? '--recipe recipe' : ''} ${evidence ? '--evidence evidence.npz' : ''} --out 60_plane_gain.npz --json 60_plane_gain.json
    """

    stub:
    """
    touch 60_plane_gain.npz && echo '{"stage": "SMOOTH_Z"}' > 60_plane_gain.json
    """
}
