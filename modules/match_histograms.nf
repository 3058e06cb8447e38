include { predicted } from './memory'

// Look-up table of each section, or plane, that brings its tissue to the pooled distribution.
process MATCH_HISTOGRAMS {
    tag "${meta.id}"
    label 'memory'
    ext memory_bytes: { predicted(volume, task.cpus) }

    input:
    tuple val(meta), val(volume),
        path(table, stageAs: 'sections/*'), path(histograms, stageAs: 'histograms/*'),
        path(recipe, stageAs: 'recipe/*'), path(evidence)
    val settings

    output:
    tuple val(meta), path('50_section_lookup.*'), emit: correction

    script:
    """
    n4flow match-histograms histograms --sections ${table ?: volume.sections} ${settings} \\
        ${recipe ? '--recipe recipe' : ''} ${evidence ? '--evidence evidence.npz' : ''} --out 50_section_lookup.npz --json 50_section_lookup.json
    """

    stub:
    """
    touch 50_section_lookup.npz && echo '{"stage": "MATCH_HISTOGRAMS"}' > 50_section_lookup.json
    """
}
