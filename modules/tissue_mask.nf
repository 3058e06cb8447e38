include { predicted } from './memory'
include { title } from './units'

// Tissue mask, agarose mask and background level of each section, from the shrunken volume.
process TISSUE_MASK {
    tag "${title(meta)}"
    label 'memory'
    label 'process_medium'
    ext memory_bytes: { predicted(volume, task) }

    input:
    tuple val(meta), val(volume),
        path(table, stageAs: 'sections/*'), path(shrunken, stageAs: 'shrunken/*'), val(voxel_um)
    val settings

    output:
    tuple val(meta), path('masks.*'), emit: masks

    script:
    """
    n4flow tissue-mask shrunken --sections ${table ?: volume.sections} --voxel-um '${voxel_um}' ${settings} \\
        --out masks.npz --json masks.json --threads ${task.cpus}
    """

    stub:
    """
    touch masks.npz && echo '{"stage": "TISSUE_MASK"}' > masks.json
    """
}
