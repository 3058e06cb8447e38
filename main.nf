#!/usr/bin/env nextflow
// n4flow: even out the intensity of serial-section volumes. Stages write corrections; RENDER applies them once.

include { check_parameters; check_row } from './modules/parameters'
include { read_samples; sample_files } from './modules/samples'
include { answer; gather; spacing; as_json; described; tools } from './modules/channels'
include { slabs_of; foreseen } from './modules/slabs'
include { explain } from './modules/failure'
include { PHANTOM          } from './modules/phantom'
include { PROBE_GPU        } from './modules/probe_gpu'
include { INSPECT          } from './modules/inspect'
include { WITH_ROOM        } from './modules/room'
include { SHRINK           } from './modules/shrink'
include { TISSUE_MASK      } from './modules/tissue_mask'
include { N4_SECTIONS      } from './modules/n4_sections'
include { N4_VOLUME        } from './modules/n4_volume'
include { HARMONIZE        } from './modules/harmonize'
include { PLANE_STATISTICS } from './modules/plane_statistics'
include { NORMALIZE        } from './modules/normalize'
include { MATCH_HISTOGRAMS } from './modules/match_histograms'
include { SMOOTH_Z         } from './modules/smooth_z'
include { RENDER           } from './modules/render'
include { FINISH           } from './modules/finish'
include { PUBLISH          } from './modules/publish'
include { PROVENANCE       } from './modules/provenance'

workflow {
    schema = file("${projectDir}/nextflow_schema.json")
    settings = check_parameters(params, schema)
    // a GPU that was asked for answers before anything else runs
    device = channel.value('cpu')
    if (params.backend == 'gpu' && settings.bias != 'off') {
        PROBE_GPU()
        device = PROBE_GPU.out.map { file -> answer(file).device }
    }

    // samples: [meta, volume, image, mask, table, flat]; meta = [id: 'brain'], volume = [options, sections, digests]
    if (params.input == 'phantom') {
        PHANTOM(device)
        samples = PHANTOM.out.volume.map { image, table ->
            sample_files([sample: 'phantom', image: image, sections: params.sections.toString() == '1' ? table : null], params)
        }
    } else {
        rows = read_samples(params).collect { row -> sample_files(check_row(row, schema), params) }
        samples = channel.fromList(rows).combine(device).map { sample -> sample.init() }
    }

    // plans: [meta, plan], plan = what INSPECT decided: slabs, batches, shrink, slab_planes
    INSPECT(samples, settings.subMap('bias', 'harmonize', 'backend', 'spline_um', 'iterations', 'shrink', 'background_radius_um',
        'ome_zarr_version', 'dtype', 'sections_per_task', 'slab_planes'))
    inputs = samples
    samples = samples.join(INSPECT.out.flagged).map { sample -> sample[0..3] + [sample[6] ?: sample[4]] }  // lost chunks flag sections
    plans = WITH_ROOM(INSPECT.out.plan.map { meta, plan, _files -> [meta, answer(plan)] }, params.outdir, params.publish_mode)
    n_slabs = plans.map { meta, plan -> [meta, plan.slabs.size()] }
    // recipe: [meta, [correction files so far]]; it grows from stage to stage and is what RENDER applies
    recipe = INSPECT.out.plan.map { meta, _plan, files -> [meta, files] }

    // slabs: [meta, volume, image, mask, slab]; slab = [name: '000064', planes: '64:128', ...], see slabs_of
    slabs = samples.join(plans).flatMap { meta, volume, image, mask, _table, plan ->
        slabs_of(plan).collect { slab -> [meta, volume, image, mask, slab] }
    }
    SHRINK(foreseen(slabs, plans, 'SHRINK').combine(recipe, by: 0))
    shrunken = gather(SHRINK.out.shrunken, n_slabs)                 // [meta, [slab files]]
    tables = samples.map { meta, volume, _image, _mask, table -> [meta, volume, table] }
    TISSUE_MASK(foreseen(tables, plans, 'TISSUE_MASK').join(shrunken))
    masks = TISSUE_MASK.out.masks                                   // [meta, [masks.npz, masks.json]]

    // bias: [meta, volume, table, [slab files], [masks]] -> correction files
    bias = tables.join(shrunken).join(masks)
    n4 = params.subMap('spline_um', 'iterations', 'tolerance', 'backend')
    if (settings.bias in ['sections', 'two_pass']) {
        // batches: [meta, batch, voxel_um]; batch = [name: '000008', sections: '8:16'], voxel_um = '50 25 25'
        batches = plans.flatMap { meta, plan ->
            plan.batches.collect { batch -> [meta, [name: String.format('%06d', batch[0]), sections: batch.join(':')], spacing(plan)] }
        }
        N4_SECTIONS(foreseen(bias, plans, 'N4_SECTIONS').combine(batches, by: 0), n4)
        fields = gather(N4_SECTIONS.out.bias, plans.map { meta, plan -> [meta, plan.batches.size()] })
        recipe = recipe.join(fields).map { meta, files, more -> [meta, files + more] }
    }
    if (settings.bias in ['volume', 'two_pass']) {
        N4_VOLUME(foreseen(bias, plans, 'N4_VOLUME').join(recipe).join(plans.map { meta, plan -> [meta, spacing(plan)] }), n4)
        recipe = recipe.join(N4_VOLUME.out.bias).map { meta, files, more -> [meta, files + more] }
    }
    if (settings.harmonize != 'off') {
        HARMONIZE(foreseen(bias, plans, 'HARMONIZE').join(recipe).join(inputs.map { sample -> [sample[0], sample[5]] }), settings.harmonize)
        recipe = recipe.join(HARMONIZE.out.correction).map { meta, files, more -> [meta, files + more] }
    }

    // histograms are of intensities after the fields: profile = [meta, volume, table, [histograms of each slab]]
    histograms = plans.map { meta, _plan -> [meta, []] }
    if (settings.normalize || settings.smooth_z > 0 || settings.match != 'off') {
        PLANE_STATISTICS(foreseen(slabs, plans, 'PLANE_STATISTICS').combine(masks, by: 0).combine(recipe, by: 0))
        histograms = gather(PLANE_STATISTICS.out.histograms, n_slabs)
    }
    profile = tables.join(histograms)
    if (settings.normalize) {
        NORMALIZE(profile, params.percentile_max)
        recipe = recipe.join(NORMALIZE.out.correction).map { meta, files, more -> [meta, files + more] }
    }
    if (settings.match != 'off') {
        MATCH_HISTOGRAMS(profile.join(recipe), settings.match, params.n_bins)
        recipe = recipe.join(MATCH_HISTOGRAMS.out.correction).map { meta, files, more -> [meta, files + more] }
    }
    if (settings.smooth_z > 0) {
        SMOOTH_Z(profile.join(recipe), settings.smooth_z)
        recipe = recipe.join(SMOOTH_Z.out.correction).map { meta, files, more -> [meta, files + more] }
    }

    RENDER(foreseen(slabs, plans, 'RENDER').combine(masks, by: 0).combine(recipe, by: 0), params.ome_zarr_version, params.dtype)
    rendered = gather(RENDER.out.slab, n_slabs)                     // [meta, [slab folders]]
    FINISH(foreseen(samples, plans, 'FINISH').join(shrunken).join(masks).join(histograms).join(recipe).join(rendered), as_json(settings))

    // results appear in outdir in one piece, and then what they came from
    PUBLISH(FINISH.out.results, params.outdir, params.publish_mode)
    done = FINISH.out.checksums.join(PUBLISH.out.published).map { _meta, checksums, _folder -> checksums }.toSortedList()
    PROVENANCE(done, described(workflow, inputs), as_json(settings), tools(channel.topic('versions')), file("${projectDir}/main.nf"))

    workflow.onError = { explain(workflow.exitStatus, workflow.errorReport)?.with { sentence -> log.error(sentence) } }
}
