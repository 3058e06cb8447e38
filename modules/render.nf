include { predicted } from './memory'
include { title } from './units'

// Read a slab once, apply the recipe, write its shards of every pyramid level and of the mask.
process RENDER {
    tag "${title(meta)} ${slab.planes}"
    label 'stream'
    label 'process_low'
    ext memory_bytes: { predicted(volume, task) }

    input:
    tuple val(meta), val(volume),
        path(image, stageAs: 'image/*'), path(mask, stageAs: 'mask/*'), val(slab), path(masks),
        path(recipe, stageAs: 'recipe/*'), val(joint)
    val settings

    output:
    tuple val(meta), path("slab_${slab.name}"), emit: slab

    script:
    """
    n4flow render-slab ${image ?: volume.address}${volume.pattern ?: ''} ${volume.options} --sample '${meta.id}' --planes ${slab.planes} --masks masks.npz \\
        ${recipe ? '--recipe recipe' : ''} ${mask ? "--mask ${mask}${volume.mask_pattern ?: ''}" : ''} \\
        --slab-planes ${slab.slab_planes} --shrink ${slab.shrink} ${joint} ${settings} \\
        --out slab_${slab.name} --json render.json --threads ${task.cpus}
    mv render.json slab_${slab.name}/
    """

    stub:
    """
    mkdir slab_${slab.name}
    """
}
