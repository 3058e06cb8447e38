// A pipeline with N4FLOW between two processes of its own: tests/test_including.py runs it.
include { N4FLOW; n4flow_settings } from './n4flow/modules/n4flow'

process STITCH {
    input: tuple val(meta), path(tile)
    output: tuple val(meta), path('stitched.npy')
    script: "cp ${tile} stitched.npy"
}

process REGISTER {
    publishDir { params.outdir }, mode: 'copy'
    input: tuple val(meta), path(store), path(mask), path(recipe)
    output: path "${meta.species}_${meta.id}*"
    script: "cp -r ${store} ${meta.species}_${meta.id}.ome.zarr && cp recipe.json ${meta.species}_${meta.id}.json"
}

workflow {
    STITCH(channel.fromPath(params.input).map { tile -> [[id: tile.baseName, species: 'mouse'], tile] })
    settings = n4flow_settings([voxel_um: '50 25 25', bias: 'off', normalize: false, match: 'off', smooth_z: 0, slab_planes: params.slab])
    N4FLOW(STITCH.out.map { meta, volume -> [meta, [image: volume, sections: 2]] }, settings)
    REGISTER(N4FLOW.out.store.join(N4FLOW.out.mask).join(N4FLOW.out.recipe))
}
