// Images at addresses: tasks read them in place, so that nothing is staged, and a task looks whether they are as they were.

include { answer } from './channels'

// Digest of the metadata of a store at an address and of its files' entity tags, asked anew in every run: what -resume notices.
process REMOTE_STATE {
    tag "${meta.id}"
    label 'stream'
    label 'process_low'
    cache false

    input:
    tuple val(meta), val(volume)

    output:
    tuple val(meta), path('state.json'), emit: state

    script:
    """
    n4flow remote-state ${volume.address} ${volume.options} --answer state.json
    """

    stub:
    """
    echo '{"state": "stub"}' > state.json
    """
}

// Add to each sample what its store at an address is like now; [meta, file] come for those that have one.
def with_states(samples, states) {
    return samples.join(states, remainder: true).filter { row -> row[1] != null }.map { meta, sample, file ->
        [meta, file ? sample + [volume: sample.volume + [state: answer(file).state]] : sample]
    }
}
