// Results of samples, [meta, folder], of which those of all channels of a sample are put together.
workflow JOINED {
    take:
    results
    samples

    main:
    parts = results.join(samples).filter { _meta, _folder, sample -> sample.joint }
        .map { meta, folder, sample -> [groupKey(meta.findAll { name, _value -> name != 'n4flow_channel' }, sample.channels), [meta.n4flow_channel, folder]] }
        .groupTuple()
        .map { key, made -> [key.getGroupTarget(), made.sort { part -> part[0] }.collect { part -> part[1] }] }
    JOIN_CHANNELS(parts)

    emit:
    results.filter { meta, _folder -> meta.n4flow_channel == null }.mix(JOIN_CHANNELS.out.results)
}

// Put the results of all channels of a sample together.
process JOIN_CHANNELS {
    tag "${meta.id}"
    label 'small'
    label 'process_single'

    input:
    tuple val(meta), path(parts, stageAs: 'parts/*/*')

    output:
    tuple val(meta), path("published/${meta.id}"), emit: results

    script:
    """
    n4flow join-channels ${[parts].flatten().collect { part -> "'${part}'" }.join(' ')} --out 'published/${meta.id}'
    """

    stub:
    """
    mkdir -p 'published/${meta.id}' && touch 'published/${meta.id}/report.html' 'published/${meta.id}/summary.json' 'published/${meta.id}/checksums.json'
    """
}
