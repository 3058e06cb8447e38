include { gpu_choice; gpu_container; gpu_request; with_gpu } from './device'

// Ask the device, on a node and in the container that a GPU task gets, before anything runs.
process PROBE_GPU {
    label 'gpu'            // conf/: what it needs,
    label 'process_gpu'    // for sites and pipelines that say so by nf-core's names,
    label 'cuda'           // its image,
    label 'device'         // the GPU itself,
    label 'shared_device'  // and how many at a time
    clusterOptions { with_gpu('clusterOptions', task, gpu_request(task)) }
    containerOptions { with_gpu('containerOptions', task, gpu_container()) }
    beforeScript { with_gpu('beforeScript', task, gpu_choice(task), '\n') }
    cache false

    output:
    path 'gpu.json', emit: answer

    script:
    """
    n4flow probe-gpu --answer gpu.json
    """

    stub:
    """
    echo '{"device": "stub"}' > gpu.json
    """
}
