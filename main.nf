#!/usr/bin/env nextflow
// n4flow on what a user gives: parameters, a folder of results, and where these came from. The stages are in modules/n4flow.nf.

include { N4FLOW; n4flow_settings } from './modules/n4flow'
include { answer_help      } from './modules/help'
include { read_samples        } from './modules/sheet'
include { answer           } from './modules/channels'
include { hold; release    } from './modules/folders'
include { as_json; described; results_of; tools } from './modules/run_info'
include { explain          } from './modules/failure'
include { PROBE_GPU        } from './modules/probe_gpu'
include { PHANTOM          } from './modules/phantom'
include { PUBLISH; tell_published } from './modules/publish'
include { PROVENANCE       } from './modules/provenance'

workflow {
    answer_help(params)
    settings = n4flow_settings(params, workflow.profile)
    // a GPU that was asked for answers before anything else runs
    device = channel.value('cpu')
    if (settings.backend == 'gpu' && settings.bias != 'off') {
        PROBE_GPU()
        device = PROBE_GPU.out.map { file -> answer(file).device }
    }
    if (settings.input == 'phantom') {
        PHANTOM(device)
        given = PHANTOM.out.volume.map { image, table ->
            [[id: 'phantom'], [image: image, sections: settings.sections.toString() == '1' ? table : settings.sections]]
        }
    } else {
        given = channel.fromList(read_samples(settings)).combine(device).map { meta, files, _device -> [meta, files] }
    }
    outdir = file(settings.outdir, glob: false)
    lock = hold(outdir)
    workflow.onComplete = { release(outdir, lock) }

    N4FLOW(given, settings)

    // results appear in outdir in one piece, and then what they came from
    PUBLISH(N4FLOW.out.results, outdir, settings.publish_mode)
    PUBLISH.out.published.subscribe { meta, numbers -> tell_published(meta, numbers) }
    names = PUBLISH.out.published.map { meta, _numbers -> meta.id }.toSortedList()
    names.subscribe { ids -> results_of(ids, outdir).with { table -> if (table) { log.info(table) } } }
    stated = N4FLOW.out.results.map { meta, folder -> [meta, ['checksums.json', 'summary.json'].collect { name -> folder.resolve(name) }] }
    done = stated.join(PUBLISH.out.published).flatMap { _meta, files, _numbers -> files }.toSortedList()
    PROVENANCE(done, described(workflow, given), as_json(settings), tools(N4FLOW.out.versions), file("${projectDir}/main.nf"))

    workflow.onError = { explain(workflow.exitStatus, workflow.errorReport)?.with { sentence -> log.error(sentence) } }
}
