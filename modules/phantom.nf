// A small serial-section volume with known truth, to try an installation.
process PHANTOM {
    label 'small'
    label 'process_single'

    input:
    val _device

    output:
    tuple path('phantom.ome.zarr'), path('phantom.sections.tsv'), emit: volume

    script:
    """
    n4flow phantom phantom.ome.zarr --threads ${task.cpus}
    """

    stub:
    """
    mkdir phantom.ome.zarr && touch phantom.sections.tsv
    """
}
