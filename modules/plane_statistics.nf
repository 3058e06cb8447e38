include { predicted } from './memory'
include { title } from './units'

// Histograms of each plane after the bias fields: of tissue, of agarose, of all valid voxels.
process PLANE_STATISTICS {
    tag "${title(meta)} ${slab.planes}"
    label 'stream'
    label 'process_low'
    ext memory_bytes: { predicted(volume, task) }

    input:
    tuple val(meta), val(volume),
        path(image, stageAs: 'image/*'), path(mask, stageAs: 'mask/*'), val(slab), path(masks),
        path(recipe, stageAs: 'recipe/*')

    output:
    tuple val(meta), path("histograms_${slab.name}.*"), emit: histograms

    script:
    """
    n4flow plane-statistics ${image ?: volume.address}${volume.pattern ?: ''} ${volume.options} --planes ${slab.planes} --masks masks.npz \\
        ${recipe ? '--recipe recipe' : ''} ${mask ? "--mask ${mask}${volume.mask_pattern ?: ''}" : ''} \\
        --out histograms_${slab.name}.npz --json histograms_${slab.name}.json --threads ${task.cpus}
    """

    stub:
    """
    touch histograms_${slab.name}.npz && echo '{"stage": "PLANE_STATISTICS"}' > histograms_${slab.name}.json
    """
}
