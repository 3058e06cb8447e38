#!/usr/bin/env nextflow
// n4flow: even out the intensity of serial-section volumes. Stages write corrections; RENDER applies them once.

include { check_parameters; options } from './modules/parameters'
include { read_samples; sample_of } from './modules/samples'
include { add; answer; batches_of; gather; inputs; slabs_of } from './modules/channels'
include { unchanged } from './modules/paths'
include { as_json; described; results_of; tools } from './modules/run_info'
include { explain } from './modules/failure'
include { hold; release } from './modules/folders'
include { has_gpu; tell_fallback } from './modules/gpu'
include { PHANTOM          } from './modules/phantom'
include { PROBE_GPU        } from './modules/probe_gpu'
include { REMOTE_STATE; with_states } from './modules/remote'
include { INSPECT          } from './modules/inspect'
include { WITH_ROOM        } from './modules/room'
include { SHRINK           } from './modules/shrink'
include { TISSUE_MASK      } from './modules/tissue_mask'
include { N4_SECTIONS      } from './modules/n4_sections'
include { N4_VOLUME        } from './modules/n4_volume'
include { PROVE            } from './modules/prove'
include { HARMONIZE        } from './modules/harmonize'
include { PLANE_STATISTICS } from './modules/plane_statistics'
include { NORMALIZE        } from './modules/normalize'
include { MATCH_HISTOGRAMS } from './modules/match_histograms'
include { SMOOTH_Z         } from './modules/smooth_z'
include { RENDER           } from './modules/render'
include { FINISH           } from './modules/finish'
include { PUBLISH; tell_published } from './modules/publish'
include { PROVENANCE       } from './modules/provenance'

workflow {
    settings = check_parameters(params, workflow.profile)
    // a GPU that was asked for answers before anything else runs
    device = channel.value('cpu')
    if (settings.backend == 'gpu' && settings.bias != 'off') {
        PROBE_GPU()
        device = PROBE_GPU.out.map { file -> answer(file).device }
    }

    // samples: [meta, sample]; meta = [id: 'brain'], sample = a map of all that is known of it, see modules/samples.nf.
    // Each stage takes some of its fields, by name, and adds the files that it made to one of them.
    if (params.input == 'phantom') {
        PHANTOM(device)
        samples = PHANTOM.out.volume.map { image, table ->
            sample_of([sample: 'phantom', image: image, sections: params.sections.toString() == '1' ? table : null], params)
        }
    } else {
        samples = channel.fromList(read_samples(params)).combine(device).map { meta, sample, _device -> [meta, sample] }
    }
    REMOTE_STATE(samples.filter { _meta, sample -> sample.volume.address }.map { meta, sample -> [meta, sample.volume] })
    samples = with_states(samples, REMOTE_STATE.out.state)
    given = samples
    outdir = file(params.outdir, glob: false)
    lock = hold(outdir)
    workflow.onComplete = { release(outdir, lock) }

    INSPECT(inputs(samples, 'INSPECT', ['image', 'mask', 'table', 'flat']), options(settings, 'INSPECT'))
    plans = INSPECT.out.plan.map { meta, plan, background, flagged -> [meta, answer(plan), background, flagged] }
    planned = samples.join(plans).map { meta, sample, plan, background, flagged ->  // lost chunks flag sections
        [meta, sample + [plan: plan, voxel_um: plan.voxel_um.values().join(' '), recipe: background, table: flagged ?: sample.table]]
    }
    samples = WITH_ROOM(planned, params.outdir, params.publish_mode)

    SHRINK(inputs(slabs_of(samples), 'SHRINK', ['image', 'mask', 'slab', 'recipe']))
    samples = gather(samples, 'shrunken', SHRINK.out.shrunken, 'slabs')
    TISSUE_MASK(inputs(samples, 'TISSUE_MASK', ['table', 'shrunken', 'voxel_um']), options(settings, 'TISSUE_MASK'))
    samples = add(samples, 'masks', TISSUE_MASK.out.masks)

    if (settings.bias in ['sections', 'two_pass']) {
        N4_SECTIONS(inputs(batches_of(samples), 'N4_SECTIONS', ['table', 'shrunken', 'masks', 'batch', 'voxel_um']), options(settings, 'N4_SECTIONS'))
        samples = gather(samples, 'recipe', N4_SECTIONS.out.bias, 'batches')
    }
    if (settings.bias in ['volume', 'two_pass']) {
        N4_VOLUME(inputs(samples, 'N4_VOLUME', ['table', 'shrunken', 'masks', 'recipe', 'voxel_um']), options(settings, 'N4_VOLUME'))
        if (has_gpu(workflow.profile) && settings.backend == 'auto') { N4_VOLUME.out.bias.subscribe { meta, files -> tell_fallback(meta, files) } }
        samples = add(samples, 'recipe', N4_VOLUME.out.bias)
    }
    if (settings.bias != 'off' || settings.match != 'off' || settings.smooth_z > 0) {
        PROVE(inputs(samples, 'PROVE', ['table', 'shrunken', 'masks', 'recipe']), options(settings, 'PROVE'))
        samples = add(add(samples, 'evidence', PROVE.out.evidence), 'recipe', PROVE.out.proven)
    }
    if (settings.harmonize != 'off') {
        HARMONIZE(inputs(samples, 'HARMONIZE', ['table', 'shrunken', 'masks', 'recipe', 'flat']), options(settings, 'HARMONIZE'))
        samples = add(samples, 'recipe', HARMONIZE.out.correction)
    }

    // histograms are of intensities after the fields
    if (settings.normalize || settings.smooth_z > 0 || settings.match != 'off') {
        PLANE_STATISTICS(inputs(slabs_of(samples), 'PLANE_STATISTICS', ['image', 'mask', 'slab', 'masks', 'recipe']))
        samples = gather(samples, 'histograms', PLANE_STATISTICS.out.histograms, 'slabs')
    }
    if (settings.normalize) {
        NORMALIZE(inputs(samples, 'NORMALIZE', ['table', 'histograms']), options(settings, 'NORMALIZE'))
        samples = add(samples, 'recipe', NORMALIZE.out.correction)
    }
    if (settings.match != 'off') {
        MATCH_HISTOGRAMS(inputs(samples, 'MATCH_HISTOGRAMS', ['table', 'histograms', 'recipe', 'evidence']), options(settings, 'MATCH_HISTOGRAMS'))
        samples = add(samples, 'recipe', MATCH_HISTOGRAMS.out.correction)
    }
    if (settings.smooth_z > 0) {
        SMOOTH_Z(inputs(samples, 'SMOOTH_Z', ['table', 'histograms', 'recipe', 'evidence']), options(settings, 'SMOOTH_Z'))
        samples = add(samples, 'recipe', SMOOTH_Z.out.correction)
    }

    RENDER(inputs(slabs_of(samples), 'RENDER', ['image', 'mask', 'slab', 'masks', 'recipe']), options(settings, 'RENDER'))
    samples = gather(samples, 'slabs', RENDER.out.slab, 'slabs')
    FINISH(inputs(samples, 'FINISH', ['image', 'mask', 'table', 'shrunken', 'masks', 'histograms', 'recipe', 'evidence', 'slabs']), as_json(settings))

    // results appear in outdir in one piece, and then what they came from
    PUBLISH(unchanged(FINISH.out.results, samples), outdir, params.publish_mode)
    PUBLISH.out.published.subscribe { meta, numbers -> tell_published(meta, numbers) }
    names = PUBLISH.out.published.map { meta, _numbers -> meta.id }.toSortedList()
    names.subscribe { ids -> results_of(ids, outdir).with { table -> if (table) { log.info(table) } } }
    done = FINISH.out.stated.join(PUBLISH.out.published).flatMap { _meta, stated, _numbers -> stated }.toSortedList()
    PROVENANCE(done, described(workflow, given), as_json(settings), tools(channel.topic('versions')), file("${projectDir}/main.nf"))

    workflow.onError = { explain(workflow.exitStatus, workflow.errorReport)?.with { sentence -> log.error(sentence) } }
}
