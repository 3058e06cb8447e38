include { gpu_choice; gpu_container; gpu_request; with_gpu } from './device'
include { predicted } from './memory'
include { title } from './units'

// N4 bias field of the whole volume, on GPU nodes where the gpu profile says so; same output as N4_SECTIONS.
process N4_VOLUME {
    tag "${title(meta)}"
    label 'gpu'            // conf/: what it needs,
    label 'process_gpu'    // for sites and pipelines that say so by nf-core's names,
    label 'cuda'           // its image,
    label 'device'         // the GPU itself,
    label 'shared_device'  // and how many at a time
    clusterOptions { with_gpu('clusterOptions', task, gpu_request(task)) }
    containerOptions { with_gpu('containerOptions', task, gpu_container()) }
    beforeScript { with_gpu('beforeScript', task, gpu_choice(task), '\n') }
    ext memory_bytes: { predicted(volume, task) }

    input:
    tuple val(meta), val(volume),
        path(table, stageAs: 'sections/*'), path(shrunken, stageAs: 'shrunken/*'), path(masks),
        path(recipe, stageAs: 'recipe/*'), val(voxel_um)
    val settings

    output:
    tuple val(meta), path('30_bias_volume.*'), emit: bias
    tuple val("${task.process}"), val("${task.container ?: '-'}"), path('30_bias_volume.json'), topic: n4flow_versions

    script:
    """
    n4flow n4-volume shrunken --masks masks.npz --sections ${table ?: volume.sections} ${recipe ? '--recipe recipe' : ''} \\
        --voxel-um '${voxel_um}' ${settings} \\
        --out 30_bias_volume.npz --json 30_bias_volume.json --threads ${task.cpus}
    """

    stub:
    """
    touch 30_bias_volume.npz && echo '{"stage": "N4_VOLUME"}' > 30_bias_volume.json
    """
}
