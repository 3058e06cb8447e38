// Ask the device, on a node and in the container that a GPU task gets, before anything runs.
process PROBE_GPU {
    label 'gpu'            // conf/: what it needs,
    label 'cuda'           // its image,
    label 'device'         // the GPU itself,
    label 'shared_device'  // and how many at a time
    cache false

    output:
    path 'gpu.json', emit: answer

    script:
    """
    n4flow-probe-gpu --answer gpu.json
    """

    stub:
    """
    echo '{"device": "stub"}' > gpu.json
    """
}
