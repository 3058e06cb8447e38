include { predicted } from './memory'

// Shrink a slab of planes in plane: masked block means and counts, and the user's mask likewise.
process SHRINK {
    tag "${meta.id} ${slab.planes}"
    label 'stream'
    ext memory_bytes: { predicted(volume, task.cpus) }

    input:
    tuple val(meta), val(volume),
        path(image, stageAs: 'image/*'), path(mask, stageAs: 'mask/*'), val(slab), path(recipe, stageAs: 'recipe/*')

    output:
    tuple val(meta), path("*_${slab.name}.*"), emit: shrunken

    script:
    """
    n4flow shrink ${image ?: volume.address}${volume.pattern ?: ''} ${volume.options} --planes ${slab.planes} --shrink ${slab.shrink} ${slab.frame ? "--frame ${slab.frame}" : ''} \\
        ${recipe ? '--recipe recipe' : ''} ${mask ? "--mask ${mask} --mask-out given_${slab.name}.npy" : ''} \\
        --out shrunken_${slab.name}.npz --json shrunken_${slab.name}.json --threads ${task.cpus}
    """

    stub:
    """
    touch shrunken_${slab.name}.npz && echo '{"stage": "SHRINK"}' > shrunken_${slab.name}.json
    """
}
