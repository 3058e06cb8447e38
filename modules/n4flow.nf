// n4flow: even out the intensity of serial-section volumes. Stages write corrections; RENDER applies them once.
// main.nf runs it on what a user gives, and another pipeline on volumes that it made: docs/pipelines.md.

include { add; answer; batches_of; gather; inputs; slabs_of } from './channels'
include { check_parameters } from './parameters'
include { as_json; versions_of } from './run_info'
include { options          } from './rules'
include { sample_of        } from './samples'
include { unchanged        } from './paths'
include { following; leading; taken_over; units_of; with_fields } from './units'
include { has_gpu; tell_fallback    } from './gpu'
include { REMOTE_STATE; with_states } from './remote'
include { INSPECT          } from './inspect'
include { WITH_ROOM        } from './room'
include { SHRINK           } from './shrink'
include { TISSUE_MASK      } from './tissue_mask'
include { N4_SECTIONS      } from './n4_sections'
include { N4_VOLUME        } from './n4_volume'
include { PROVE            } from './prove'
include { HARMONIZE        } from './harmonize'
include { PLANE_STATISTICS } from './plane_statistics'
include { INTENSITY        } from './intensity'
include { RENDER           } from './render'
include { FINISH           } from './finish'
include { JOINED           } from './join_channels'

// Settings of N4FLOW: parameters by name, of which those that are not given have their defaults. A mistake ends the run.
// Without outdir nothing is put there, and nobody asks whether it has room.
def n4flow_settings(given, profile = '') {
    return check_parameters([outdir: null] + given, profile)
}

workflow N4FLOW {
    take:
    given     // [meta, files]: meta.id names the sample; files = [image: path] and, optionally, mask, flat_field, sections, voxel_um, channel
    settings  // what n4flow_settings returns

    main:
    // samples: [meta, sample], where a sample is a map of all that is known of it, see modules/samples.nf. Each stage takes
    // some of its fields, by name, and adds the files that it made to one of them.
    samples = given.map { meta, files -> [meta, sample_of(meta.id, files, settings)] }
    REMOTE_STATE(samples.filter { _meta, sample -> sample.volume.address }.map { meta, sample -> [meta, sample.volume] })
    samples = with_states(samples, REMOTE_STATE.out.state)

    INSPECT(inputs(samples, 'INSPECT', ['image', 'mask', 'table', 'flat']), options(settings, 'INSPECT'))
    plans = INSPECT.out.plan.map { meta, plan, background, flagged -> [meta, answer(plan), background, flagged] }
    samples = samples.join(plans).map { meta, sample, plan, background, flagged ->  // lost chunks flag sections
        [meta, sample + [plan: plan, voxel_um: plan.voxel_um.values().join(' '), recipe: background, table: flagged ?: sample.table]]
    }
    if (settings.outdir) { samples = WITH_ROOM(samples, settings.outdir, settings.publish_mode) }

    samples = units_of(samples)
    SHRINK(inputs(slabs_of(samples), 'SHRINK', ['image', 'mask', 'slab', 'recipe']))
    samples = gather(samples, 'shrunken', SHRINK.out.shrunken, 'slabs')
    TISSUE_MASK(inputs(leading(samples), 'TISSUE_MASK', ['table', 'shrunken', 'voxel_um']), options(settings, 'TISSUE_MASK'))
    masked = taken_over(samples, 'masks', TISSUE_MASK.out.masks)
    samples = leading(masked)

    if (settings.bias in ['sections', 'two_pass']) {
        N4_SECTIONS(inputs(batches_of(samples), 'N4_SECTIONS', ['table', 'shrunken', 'masks', 'batch', 'voxel_um']), options(settings, 'N4_SECTIONS'))
        samples = gather(samples, 'recipe', N4_SECTIONS.out.bias, 'batches')
    }
    if (settings.bias in ['volume', 'two_pass']) {
        N4_VOLUME(inputs(samples, 'N4_VOLUME', ['table', 'shrunken', 'masks', 'recipe', 'voxel_um']), options(settings, 'N4_VOLUME'))
        if (has_gpu(workflow.profile) && settings.backend == 'auto') { N4_VOLUME.out.bias.subscribe { meta, files -> tell_fallback(meta, files) } }
        samples = add(samples, 'recipe', N4_VOLUME.out.bias)
    }
    samples = samples.mix(following(masked))
    if (settings.bias != 'off' || settings.match != 'off' || settings.smooth_z > 0) {
        PROVE(inputs(samples, 'PROVE', ['table', 'shrunken', 'masks', 'recipe']), options(settings, 'PROVE'))
        samples = add(add(samples, 'evidence', PROVE.out.evidence), 'recipe', PROVE.out.proven)
    }
    samples = with_fields(samples)
    if (settings.harmonize != 'off') {
        HARMONIZE(inputs(samples, 'HARMONIZE', ['table', 'shrunken', 'masks', 'recipe', 'flat']), options(settings, 'HARMONIZE'))
        samples = add(samples, 'recipe', HARMONIZE.out.correction)
    }

    // histograms are of intensities after the fields
    if (settings.normalize || settings.match != 'off' || settings.smooth_z > 0) {
        PLANE_STATISTICS(inputs(slabs_of(samples), 'PLANE_STATISTICS', ['image', 'mask', 'slab', 'masks', 'recipe']))
        samples = gather(samples, 'histograms', PLANE_STATISTICS.out.histograms, 'slabs')
        INTENSITY(inputs(samples, 'INTENSITY', ['table', 'histograms', 'recipe', 'evidence']), options(settings, 'INTENSITY'))
        samples = add(samples, 'recipe', INTENSITY.out.corrections)
    }

    RENDER(inputs(slabs_of(samples), 'RENDER', ['image', 'mask', 'slab', 'masks', 'recipe', 'joint']), options(settings, 'RENDER'))
    samples = gather(samples, 'slabs', RENDER.out.slab, 'slabs')
    FINISH(inputs(samples, 'FINISH', ['image', 'mask', 'table', 'shrunken', 'masks', 'histograms', 'recipe', 'evidence', 'slabs', 'joint']), as_json(settings))
    results = JOINED(unchanged(FINISH.out.results, samples), samples)
    store = results.map { meta, folder -> [meta, folder.resolve("${meta.id}.ome.zarr")] }
    mask = results.map { meta, folder -> [meta, folder.resolve('mask.ome.zarr')] }
    recipe = results.map { meta, folder -> [meta, ['recipe.json', 'corrections'].collect { name -> folder.resolve(name) }.findAll { path -> path.exists() }] }
    metrics = results.map { meta, folder -> [meta, folder.resolve('metrics.json')] }
    report = results.map { meta, folder -> [meta, folder.resolve('report.html')] }
    versions = versions_of(channel.topic('n4flow_versions'))

    emit:
    results   // [meta, folder] of all that a sample has (docs/output.md); the rest are paths in it
    store
    mask
    recipe
    metrics
    report
    versions  // [process, container, lines of tool and version]
}
