include { predicted } from './memory'
include { title } from './units'

// Shrink a slab of planes in plane: masked block means and counts, and the user's mask likewise.
process SHRINK {
    tag "${title(meta)} ${slab.planes}"
    label 'stream'
    label 'process_low'
    ext memory_bytes: { predicted(volume, task) }

    input:
    tuple val(meta), val(volume),
        path(image, stageAs: 'image/*'), path(mask, stageAs: 'mask/*'), val(slab), path(recipe, stageAs: 'recipe/*')

    output:
    tuple val(meta), path("*_${slab.name}.*"), emit: shrunken

    script:
    """
    n4flow shrink ${image ?: volume.address}${volume.pattern ?: ''} ${volume.options} --planes ${slab.planes} --shrink ${slab.shrink} ${slab.frame ? "--frame ${slab.frame}" : ''} \\
        ${recipe ? '--recipe recipe' : ''} ${mask ? "--mask ${mask}${volume.mask_pattern ?: ''} --mask-out given_${slab.name}.npy" : ''} \\
        --out shrunken_${slab.name}.npz --json shrunken_${slab.name}.json --threads ${task.cpus}
    """

    stub:
    """
    touch shrunken_${slab.name}.npz && echo '{"stage": "SHRINK"}' > shrunken_${slab.name}.json
    """
}
