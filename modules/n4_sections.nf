include { predicted } from './memory'
include { title } from './units'

// N4 bias field of each section of a batch, on CPU nodes.
process N4_SECTIONS {
    tag "${title(meta)} ${batch.sections}"
    label 'cpu'
    label 'process_medium'
    ext memory_bytes: { predicted(volume, task) }

    input:
    tuple val(meta), val(volume),
        path(table, stageAs: 'sections/*'), path(shrunken, stageAs: 'shrunken/*'), path(masks), val(batch),
        val(voxel_um)
    val settings

    output:
    tuple val(meta), path("20_bias_sections.${batch.name}.*"), emit: bias

    script:
    """
    n4flow n4-sections shrunken --masks masks.npz --sections ${table ?: volume.sections} --batch ${batch.sections} \\
        --voxel-um '${voxel_um}' ${settings} \\
        --out 20_bias_sections.${batch.name}.npz --json 20_bias_sections.${batch.name}.json --threads ${task.cpus}
    """

    stub:
    """
    touch 20_bias_sections.${batch.name}.npz && echo '{"stage": "N4_SECTIONS"}' > 20_bias_sections.${batch.name}.json
    """
}
