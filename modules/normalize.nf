// Range of each plane: agarose at 0, the volume divided by its largest span.
process NORMALIZE {
    tag "${meta.id}"
    label 'small'

    input:
    tuple val(meta), val(volume),
        path(table, stageAs: 'sections/*'), path(histograms, stageAs: 'histograms/*')
    val settings

    output:
    tuple val(meta), path('40_plane_range.*'), emit: correction

    script:
    """
    n4flow normalize histograms --sections ${table ?: volume.sections} ${settings} \\
        --out 40_plane_range.npz --json 40_plane_range.json
    """

    stub:
    """
    touch 40_plane_range.npz && echo '{"stage": "NORMALIZE"}' > 40_plane_range.json
    """
}
