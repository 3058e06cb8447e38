include { unseen } from './memory'

// Check a sample's store, section table and mask, find its padding, and decide how it is cut into tasks.
process INSPECT {
    tag "${meta.id}"
    label 'stream'
    label 'process_low'
    ext memory_bytes: { unseen([image, mask, flat], task) }

    input:
    tuple val(meta), val(volume),
        path(image, stageAs: 'image/*'), path(mask, stageAs: 'mask/*'), path(table, stageAs: 'sections/*'),
        path(flat, stageAs: 'flat_field/*')
    val settings

    output:
    tuple val(meta), path('plan.json'), path('inspected/10_background.npz', arity: '0..*'), path('inspected/sections.tsv', arity: '0..*'), emit: plan
    tuple val("${task.process}"), val("${task.container ?: '-'}"), path('plan.json'), topic: n4flow_versions

    script:
    """
    n4flow inspect ${image ?: volume.address}${volume.pattern ?: ''} --sample '${meta.id}' --sections ${table ?: volume.sections} ${volume.options} ${mask ? "--mask ${mask}${volume.mask_pattern ?: ''}" : ''} \\
        ${flat ? "--flat-field ${flat}" : ''} ${settings} \\
        --out inspected --answer plan.json
    """

    stub:
    """
    echo '{"slabs": [[0, 8], [8, 16]], "batches": [[0, 1], [1, 2]], "shrink": 2, "slab_planes": 8, "frame": "0:8,0:8",
           "memory_bytes": {"SHRINK": 466616320}, "memory_bytes_per_thread": {"SHRINK": 1},
           "voxel_um": {"z": 1, "y": 1, "x": 1}, "needs": {"bytes": 0, "files": 0, "work_bytes": 0, "work_files": 0}}' > plan.json
    """
}
